"""Files that others made: all that pydicom brings for its own tests, and all of pydicom-data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pydicom import dcmread
from pynetdicom.dsutils import split_dataset

PLACES = {"pydicom": "data", "data_store": "data"}  # packages, and their folders with files
BESIDE = {".py", ".pyc", ".json", ".txt", ".md", ".icc", ".dump"}  # what lies there and is no DICOM file


class NotSendable(Exception):
    """No sender can send this: it says why."""


@dataclass(frozen=True, slots=True)
class Sendable:
    """What a sender must know of a file; `data_set` is what lies in it, without a byte changed."""

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    data_set: bytes


@dataclass(frozen=True, slots=True)
class ForeignFile:
    """`name` is the same on every machine: folders below the package's data, and the file."""

    name: str
    path: Path

    def sendable(self) -> Sendable:
        """As senders take it: the UIDs of the data set, those of the meta information where it lacks them. Raises
        NotSendable."""
        content = self.path.read_bytes()
        if content[128:132] != b"DICM":
            raise NotSendable("no file meta information")
        meta, offset = split_dataset(self.path)
        if not meta.get("TransferSyntaxUID"):
            raise NotSendable("no Transfer Syntax UID")
        header = dcmread(self.path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
        sop_class = str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", ""))
        sop_instance = str(header.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID", ""))
        if not (sop_class and sop_instance):
            raise NotSendable("no SOP Class or Instance UID")
        return Sendable(sop_class, sop_instance, str(meta.TransferSyntaxUID), content[offset:])


def foreign_files() -> Iterator[ForeignFile]:
    """All DICOM files, and what looks like some, of both packages; nothing is downloaded."""
    for package, folder in PLACES.items():
        spec = find_spec(package)
        assert spec is not None, f"{package} is not installed"
        assert spec.origin is not None
        root = Path(spec.origin).parent / folder
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix not in BESIDE:
                yield ForeignFile(path.relative_to(root).as_posix(), path)
