"""Logs of operators whose payload was removed: kept apart, for a time of their own.

    <root>/<32 hex digits of the payload>/<op>.log

A folder appears whole or not at all. Its modification time is the end of the payload's last job.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from clara_flow.records.durable import naming_storage_problems, remove_tree
from clara_flow.records.payload_store import PayloadFolder


class LogArchive:
    """The archived logs of one machine; `root` is made when the first are kept."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def folder(self, payload_id: uuid.UUID) -> Path:
        """Where the logs of a payload are kept, whether there are any or not."""
        return self.root / payload_id.hex

    def keep(self, payload: PayloadFolder, ended: datetime) -> None:
        """Copy a payload's logs; those that are kept already stay as they are. Raises StorageError."""
        source, final = payload.path / "logs", self.folder(payload.id)
        if final.exists() or not source.is_dir():
            return
        partial = self.root / f".{final.name}.partial"
        with naming_storage_problems(self.root):
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            remove_tree(partial)
            shutil.copytree(source, partial, symlinks=True)
            os.utime(partial, (ended.timestamp(), ended.timestamp()))
            partial.rename(final)

    def remove_before(self, moment: datetime) -> int:
        """Remove the logs of jobs that ended before `moment` (with a time zone). Returns how many folders went."""
        old = [folder for folder, ended in self._kept() if ended < moment]
        for folder in old:
            remove_tree(folder)
        return len(old)

    def _kept(self) -> Iterator[tuple[Path, datetime]]:
        if self.root.is_dir():
            for path in sorted(self.root.iterdir()):
                if re.fullmatch(r"[0-9a-f]{32}", path.name):
                    yield path, datetime.fromtimestamp(path.stat().st_mtime, UTC)
