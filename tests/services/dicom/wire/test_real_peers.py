"""dcmtk and pynetdicom against our listener: what they send is what lies on the disk, byte for byte."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, build_context
from pynetdicom.sop_class import MRImageStorage, Verification  # type: ignore[attr-defined]
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import context, data_set, store_rq

from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig

needs_dcmtk = pytest.mark.skipif(shutil.which("storescu") is None, reason="dcmtk is not installed")
JPIP_HTJ2K_DEFLATED = "1.2.840.10008.1.2.4.205"  # pynetdicom sends it without deflating it
TRAILING_PADDING = 0xFFFC_FFFC
FILES = sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*"))  # no downloads


def dcmtk(*command: str) -> subprocess.CompletedProcess[str]:
    """A tool of dcmtk, run to its end."""
    environment = {**os.environ, "TCP_NODELAY": "1"}  # Debian's dcmtk leaves Nagle's algorithm on
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@needs_dcmtk
def test_echoscu(listening: Listening) -> None:
    port = str(listening.port)
    assert dcmtk("echoscu", "-aet", "MODALITY", "-aec", "BRAIN", "127.0.0.1", port).returncode == 0
    stranger = dcmtk("echoscu", "-aet", "STRANGER", "-aec", "BRAIN", "127.0.0.1", port)
    assert "Calling AE Title Not Recognized" in stranger.stderr
    assert (
        "Called AE Title Not Recognized" in dcmtk("echoscu", "-aet", "MODALITY", "-aec", "X", "127.0.0.1", port).stderr
    )


@needs_dcmtk
@pytest.mark.parametrize("pdu_bytes", [4096, 131072])
def test_storescu(listening: Listening, pdu_bytes: int) -> None:
    files = [path for path in FILES if path.name in {"CT_small.dcm", "MR_small.dcm", "rtplan.dcm"}]
    send = ["storescu", "-aet", "MODALITY", "-aec", "BRAIN", "--max-send-pdu", str(pdu_bytes), "127.0.0.1"]
    sent = dcmtk(*send, str(listening.port), *map(str, files))
    assert sent.returncode == 0, sent.stderr
    assert [closed.how for closed in listening.closed()] == ["released"]
    for path, entry in zip(files, listening.stored(), strict=True):
        stored, original = pydicom.dcmread(listening.options.spool / entry.path), pydicom.dcmread(path)
        original.pop(TRAILING_PADDING, None)  # dcmtk leaves it out
        assert stored == original
        assert entry.study == original.StudyInstanceUID


@needs_dcmtk
def test_storescu_aborts_in_the_middle(listening: Listening) -> None:
    [file] = [path for path in FILES if path.name == "CT_small.dcm"]
    send = ["storescu", "-aet", "MODALITY", "-aec", "BRAIN", "--abort", "127.0.0.1", str(listening.port), str(file)]
    dcmtk(*send)
    assert len(listening.stored()) == 1
    assert [closed.how for closed in listening.closed()] == ["aborted"]


@pytest.mark.parametrize("syntax", [syntax for syntax in AllTransferSyntaxes if syntax != JPIP_HTJ2K_DEFLATED])
def test_pynetdicom_and_every_transfer_syntax(listening: Listening, syntax: str) -> None:
    """It does not look at pixels, so the bytes of one syntax may be said to be those of another."""
    dataset = pydicom.dcmread(io.BytesIO(data_set()), force=True)
    dataset = pydicom.Dataset({element.tag: element for element in dataset})
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    ae = AE(ae_title="MODALITY")
    ae.add_requested_context(MRImageStorage, syntax)
    association = ae.associate("127.0.0.1", listening.port, ae_title="BRAIN")
    assert association.is_established
    assert association.accepted_contexts[0].transfer_syntax == [syntax]
    assert association.send_c_store(dataset).Status == 0
    association.release()
    assert association.is_released
    [entry] = listening.stored()
    assert entry.transfer_syntax == syntax
    stored = pydicom.dcmread(listening.options.spool / entry.path)
    assert stored.file_meta.TransferSyntaxUID == syntax
    assert stored.file_meta.SourceApplicationEntityTitle == "MODALITY"
    assert stored.SOPInstanceUID == dataset.SOPInstanceUID
    assert stored.PixelData == dataset.PixelData


def test_deflated_by_hand(listening: Listening) -> None:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = deflate.compress(data_set()) + deflate.flush()
    with listening.peer() as peer:
        peer.associate(context(1, MRImageStorage, JPIP_HTJ2K_DEFLATED))
        assert peer.store(store_rq(), data) == 0
        assert peer.store(store_rq(), data_set()) == 0xC000  # as pynetdicom sends it
        peer.release()
    assert listening.data_sets() == [data]


def test_pynetdicom_verifies(listening: Listening) -> None:
    ae = AE(ae_title="MODALITY")
    association = ae.associate("127.0.0.1", listening.port, [build_context(Verification)], ae_title="BRAIN")
    assert association.send_c_echo().Status == 0
    association.release()


def test_25_associations_to_five_ae_titles_at_once(listen: Callable[..., Listening], config: ListenerConfig) -> None:
    rules = [AeTitleRule(name=f"ae{number}", ae_title=f"AE{number}") for number in range(5)]
    listening = listen(config=replace(config, aetitles={rule.ae_title: rule for rule in rules}))
    everybody = threading.Barrier(25)
    statuses: list[list[int]] = []

    def send(number: int) -> None:
        with listening.peer() as peer:
            peer.associate(called=f"AE{number % 5}".encode())
            everybody.wait(20)
            uids = [f"1.2.{number}.{each}" for each in range(8)]
            statuses.append([peer.store(store_rq(sop_instance=uid), data_set(SOPInstanceUID=uid)) for uid in uids])
            peer.release()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [[0] * 8] * 25
    assert len({entry.sop_instance for entry in listening.stored()}) == 200
    assert sorted(opened.called for opened in listening.opened()) == sorted([f"AE{n}" for n in range(5)] * 5)
    assert [closed.how for closed in listening.closed()] == ["released"] * 25
