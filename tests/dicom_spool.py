"""Hand-made spools: instances and journals as listeners write them, for tests of what reads them."""

from __future__ import annotations

import fcntl
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from clara_flow.services.dicom.journal_entries import Closed, Entry, Opened, Stepped, Stored, to_line


class HandMade:
    """A journal that is written line by line; `end` closes it as the end of its process would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = f"{uuid.uuid4()}.jsonl"
        (root / "journals").mkdir(parents=True, exist_ok=True)
        (root / "instances").mkdir(exist_ok=True)
        self.path = root / "journals" / self.name
        self._descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o640)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._count = 0

    def open(self, aetitle: str = "BRAIN", *, calling: str = "MODALITY", require_release: bool = False) -> uuid.UUID:
        association = uuid.uuid4()
        self.write(
            Opened(
                association=association, at=datetime.now(UTC), calling=calling, called=aetitle, aetitle=aetitle,
                peer="127.0.0.1", require_release=require_release,
            )
        )  # fmt: skip
        return association

    def store(
        self,
        association: uuid.UUID,
        *,
        study: str = "1.2.3",
        series: str = "1.2.3.1",
        uid: str | None = None,
        keys: dict[str, str] | None = None,
        content: bytes = b"instance",
        **attributes: str,
    ) -> str:
        """An instance with its file; returns its SOP Instance UID."""
        self._count += 1
        uid = uid or generate_uid()
        path = self.root / "instances" / str(association) / f"{self._count}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        self.write(
            Stored(
                association=association, at=datetime.now(UTC), path=path.relative_to(self.root).as_posix(),
                size=len(content), sop_class=CTImageStorage, sop_instance=uid, study=study, series=series,
                transfer_syntax=ExplicitVRLittleEndian, attributes=attributes, keys=keys or {},
            )
        )  # fmt: skip
        return uid

    def close(self, association: uuid.UUID, how: str = "released") -> None:
        self.write(Closed(association=association, at=datetime.now(UTC), how=how))  # type: ignore[arg-type]

    def step(self, association: uuid.UUID, path: str) -> None:
        self.write(Stepped(association=association, at=datetime.now(UTC), path=path))

    def write(self, entry: Entry) -> None:
        os.write(self._descriptor, to_line(entry))

    def write_raw(self, content: bytes) -> None:
        os.write(self._descriptor, content)

    def end(self) -> None:
        os.close(self._descriptor)
