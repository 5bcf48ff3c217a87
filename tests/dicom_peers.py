"""Modalities for tests: small instances, and who sends them."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import dcmtk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import encode

ROOT = "1.2.826.0.1.3680043.10.543"
RECEIVED, PRODUCED, STUDY, SERIES = (f"{ROOT}.{n}." for n in (1, 2, 3, 4))  # answering_operator.py knows the first two
MODALITY = "MODALITY"


def new_uid(root: str) -> str:
    """A UID below it that nobody has."""
    return f"{root}{uuid.uuid4().int % 10**30}"


def produced(sop_instance_uid: str) -> str:
    """What the answering operator makes of an instance."""
    return sop_instance_uid.replace(RECEIVED, PRODUCED)


def instance(study: str, *, series: str = "", side: int = 8, **attributes: object) -> FileDataset:
    """A CT slice of side x side pixels with a SOP Instance UID of its own."""
    uid = new_uid(RECEIVED)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, uid
    made.StudyInstanceUID, made.SeriesInstanceUID = study, series or f"{SERIES}{study.removeprefix(STUDY)}"
    made.PatientName, made.PatientID, made.Modality = "Nobody", "NOBODY-1", "CT"
    made.Rows = made.Columns = side
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit, made.PixelRepresentation = 7, 0
    made.PixelData = os.urandom(side * side)
    made["PixelData"].VR = "OB"
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def study_of(count: int, **attributes: object) -> list[FileDataset]:
    """The instances of a new study."""
    uid = new_uid(STUDY)
    return [instance(uid, **attributes) for _ in range(count)]


def data_set_bytes(made: Dataset) -> bytes:
    """Its data set as it goes over the wire."""
    return encode(made, is_implicit_vr=False, is_little_endian=True) or b""


def data_set_of(path: Path) -> bytes:
    """What follows the file meta information (PS3.10 section 7.1)."""
    content = path.read_bytes()
    assert content[128:132] == b"DICM"
    return content[144 + int.from_bytes(content[140:144], "little") :]


def associate(port: int, called: str, *, calling: str = MODALITY, patience_s: float = 20) -> Association:
    """An association for CT; it may not be established."""
    node = AE(calling)
    node.acse_timeout = node.dimse_timeout = node.network_timeout = patience_s
    node.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    return node.associate("127.0.0.1", port, ae_title=called, evt_handlers=[(evt.EVT_CONN_OPEN, _at_once)])


def store(port: int, called: str, instances: Iterable[Dataset], *, calling: str = MODALITY) -> list[int]:
    """Send them on one association that is released; the statuses."""
    association = associate(port, called, calling=calling)
    assert association.is_established, f"{called} took no association"
    statuses = [association.send_c_store(made).get("Status", -1) for made in instances]
    association.release()
    return statuses


def storescu(port: int, called: str, instances: Sequence[FileDataset], folder: Path, *options: str) -> None:
    """Send them with dcmtk on one association; skips where that is not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, made in enumerate(instances):
        files.append(folder / f"{number}.dcm")
        made.save_as(files[-1], enforce_file_format=True)
    sent = dcmtk.run("storescu", *options, "-aet", MODALITY, "-aec", called, "127.0.0.1", str(port), *files)
    assert sent.returncode == 0, sent.stderr


def _at_once(event: evt.Event) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
