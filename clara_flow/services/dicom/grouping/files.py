"""Where the file of a received instance is: in the spool, or in the payload of a job; and when it leaves the spool."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from uuid import UUID

from clara_flow.deployments.trigger import House
from clara_flow.errors import PayloadError, StorageError
from clara_flow.records import dicom_group_files as records
from clara_flow.records.dicom_models import Instance
from clara_flow.services.dicom.grouping.names import payload_names
from clara_flow.services.dicom.journal import INSTANCES, JournalReader

log = logging.getLogger(__name__)


class Files:
    """Of the spool at `spool`; for any thread."""

    def __init__(self, house: House, spool: Path) -> None:
        self.house, self.spool = house, spool

    def sources(self, instances: Sequence[Instance]) -> dict[str, Path]:
        """The files of a group's instances by their names in a payload.

        Raises PayloadError when some are kept nowhere any more.
        """
        names = payload_names(instances)
        spooled = {row.path: self.spool / row.path for row in instances if (self.spool / row.path).is_file()}
        elsewhere = self._in_payloads({row.path for row in instances} - spooled.keys())
        found = {names[row.id or 0]: spooled.get(row.path) or elsewhere.get(row.path) for row in instances}
        lost = sum(path is None for path in found.values())
        if lost:
            raise PayloadError(
                f"{lost} of {len(instances)} instances are kept no more; let the study be sent again", lost=lost
            )
        return {name: path for name, path in found.items() if path is not None}

    def remove(self, group_id: UUID) -> int:
        """Remove what a group that is over leaves in the spool; how many files went. Safe to call twice."""
        return self._unlink(records.removable(self.house.engine, group_id))

    def sweep(self) -> int:
        """Remove what groups that are over left in the spool, wherever a process ended; how many files went.

        Files that no journal and no group tells of go, too, once they are older than `orphan_payload_s`: a power cut
        took their line, so they were never acknowledged. When the tables know not a single file that is here, they are
        taken for another installation's, and none of these goes.
        """
        before = time.time() - self.house.settings.orphan_payload_s
        folders = [folder for folder in (self.spool / INSTANCES).glob("*") if _is_association(folder)]
        old = {folder for folder in folders if _touched(folder) < before}
        told = self._told() if old else set()  # before the tables are asked: a journal goes once they have it
        removed, known, unknown = 0, False, list[Path]()
        for folder in folders:
            done, needed = records.removable_of_association(self.house.engine, UUID(folder.name))
            removed += self._unlink(path for path in done if (self.spool / path).exists())
            known = known or bool(done or needed)
            if folder in old and not done and not needed and folder.name not in told:
                unknown.append(folder)
        if known:
            for folder in unknown:
                removed += self._unlink(str(path.relative_to(self.spool)) for path in folder.glob("*"))
        return removed

    def _told(self) -> set[str]:
        """The associations that stand in a journal."""
        reader = JournalReader(self.spool)
        return {str(entry.association) for name in reader.names() for entry in reader.entries(name)}

    def _in_payloads(self, paths: Set[str]) -> dict[str, Path]:
        """Those of these files of the spool that have gone into payloads, as far as they are still there."""
        found: dict[str, Path] = {}
        for payload_id, instances in records.payloads_with(self.house.engine, paths) if paths else ():
            folder, names = self.house.store.folder(payload_id).input, payload_names(instances)
            for row in instances:
                if row.path in paths and row.path not in found and (file := folder / names[row.id or 0]).is_file():
                    found[row.path] = file
        return found

    def _unlink(self, paths: Iterable[str]) -> int:
        removed = 0
        for path in paths:
            try:
                (self.spool / path).unlink()
                removed += 1
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError(f"the spool's file {path} cannot be removed: {error.strerror}") from None
        return removed


def _is_association(folder: Path) -> bool:
    try:
        UUID(folder.name)
    except ValueError:
        return False
    return True


def _touched(folder: Path) -> float:
    """When something was last added to a folder (Unix time); in the future when it is gone."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
