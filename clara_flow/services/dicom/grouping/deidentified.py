"""What an AE title that de-identifies hands to its jobs instead of what was received."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from clara_flow.deployments.trigger import House
from clara_flow.errors import InputError
from clara_flow.records.durable import naming_storage_problems, remove_tree
from clara_flow.services.dicom.deidentify import Deidentifier, key_file
from clara_flow.services.dicom.reading import read_header

FOLDER = "deidentified"  # of the spool
SOP_INSTANCE_UID = "SOPInstanceUID"


class Deidentified:
    """Cleaned copies below the spool, until they are in payloads; for any thread, one at a time for a group."""

    def __init__(self, house: House, spool: Path) -> None:
        self.house, self.folder = house, spool / FOLDER

    def sources(self, group_id: UUID, sources: Mapping[str, Path], profile: str) -> dict[str, Path]:
        """Cleaned copies of these files by their names in a payload, which tell of no original UID either.

        profile     a name of `deidentify.PROFILES`.

        Raises InputError for what cannot be de-identified, StorageError.
        """
        place = self.folder / group_id.hex
        cleaned = {}
        with naming_storage_problems(self.folder):
            deidentifier = Deidentifier.of(key_file(self.house.settings))
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            for number, (name, source) in enumerate(sorted(sources.items()), start=1):
                target, partial = place / f"{number}.dcm", place / f".{number}.partial"
                partial.unlink(missing_ok=True)
                deidentifier.deidentify_file(source, partial, profile)
                partial.replace(target)
                uid = str(read_header(target, [SOP_INSTANCE_UID]).get(SOP_INSTANCE_UID, ""))
                if not uid:
                    raise InputError("an instance has no SOP Instance UID any more after it was de-identified")
                cleaned[f"{name.partition('/')[0]}/{uid}.dcm"] = target
        return cleaned

    def remove(self, group_id: UUID) -> None:
        """They are in payloads now, or nobody wants them. Safe to call twice."""
        with naming_storage_problems(self.folder):
            remove_tree(self.folder / group_id.hex)

    def groups(self) -> set[UUID]:
        """Those that have copies here."""
        found = set()
        for path in self.folder.glob("*"):
            with suppress(ValueError):
                found.add(UUID(path.name))
        return found
