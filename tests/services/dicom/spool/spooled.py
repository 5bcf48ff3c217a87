"""What tests of the spool put in and look for."""

from __future__ import annotations

import os
from pathlib import Path

from clara_flow.services.dicom.journal import JournalReader
from clara_flow.services.dicom.journal_entries import Entry, InstanceFacts, Stored
from clara_flow.services.dicom.spool import SpoolWriter

WHO = {"calling": "MODALITY", "called": "BRAIN", "aetitle": "BRAIN", "peer": "127.0.0.1", "require_release": False}


def facts(sop_instance: str = "1.2.3") -> InstanceFacts:
    """Of an MR image."""
    return InstanceFacts(
        sop_class="1.2.840.10008.5.1.4.1.1.4",
        sop_instance=sop_instance,
        study="1.2",
        series="1.2.1",
        transfer_syntax="1.2.840.10008.1.2.1",
        attributes={"Modality": "MR", "StudyDescription": "Schädel"},
        keys={"00100020": "ab" * 32},
    )


def everything(root: Path) -> list[Entry]:
    """What all journals say."""
    reader = JournalReader(root)
    return [entry for name in reader.names() for entry in reader.entries(name)]


def stored(root: Path) -> list[Stored]:
    """Which instances are there."""
    return [entry for entry in everything(root) if isinstance(entry, Stored)]


def files(root: Path) -> dict[str, bytes]:
    """All received files, by path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in (root / "instances").rglob("*")
        if path.is_file()
    }


def abandoned_writer(root: Path, content: bytes, *, whole: int = 1) -> None:
    """A process that stores `whole` instances, leaves one half and dies without a word."""
    child = os.fork()
    if child == 0:
        try:
            writer = SpoolWriter(root, fsync=False)
            association = writer.open_association(**WHO)
            for number in range(whole):
                incoming = writer.begin(association)
                incoming.write(content)
                incoming.commit(facts(f"1.2.{number}"))
            writer.begin(association).write(content)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
