"""Payloads on disk: where everything lies, and how a folder becomes sealed.

    <root>/<32 hex digits>/         one payload, 0700: patients' data is nobody else's
        input/                      what came in; read-only once sealed
        operators/<op>/[<output>/]  outputs of a completed operator; read-only
        operators/.<op>.<n>.partial/    outputs of its attempt n, being written
        manifests/input.json, manifests/operators/<op>.json
        logs/<op>.log
        reports/<op>/               facts that an operator tells the platform
        control/<op>/               what its driver is told

Sealing, in this order: files and folders are made read-only and flushed; the manifest is written and flushed; the
folder gets its name. "Sealed" is: the folder has its name. So a crash at any instant leaves either nothing sealed (at
most a partial folder, and a manifest without a folder, which the next attempt overwrites) or the whole. A folder never
gets its name before its manifest is safe, and the manifest of a folder that has its name is never written again.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clara_flow.errors import PayloadError, StorageError
from clara_flow.records.durable import (
    make_read_only,
    naming_storage_problems,
    remove_tree,
    sync,
    sync_all,
    write_durably,
)
from clara_flow.records.manifest import Difference, Manifest, ManifestFile, settle_links, sha256_of, walk
from clara_flow.records.staging import Progress, copy_files, find_files

LOW_STORAGE_CODE = -8450  # the Platform API's code of a refused creation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PayloadFolder:
    """The folder of one payload. All of its paths are made here; names keep their spelling.

    Methods that take an operator's name raise PayloadError for a name that is no plain file name.
    """

    path: Path

    @property
    def id(self) -> uuid.UUID:
        """Id of the payload."""
        return uuid.UUID(self.path.name)

    @property
    def input(self) -> Path:
        """The job's input."""
        return self.path / "input"

    def operator_folder(self, operator: str, output: str = "") -> Path:
        """Sealed outputs of an operator, or one of them. They exist once it has completed."""
        return _below(self.path / "operators" / _plain(operator), output)

    def partial_folder(self, operator: str, *, attempt: int, output: str = "") -> Path:
        """Where attempt number `attempt` writes."""
        return _below(self.path / "operators" / f".{_plain(operator)}.{attempt}.partial", output)

    def log_path(self, operator: str) -> Path:
        """Its log file."""
        return self.path / "logs" / f"{_plain(operator)}.log"

    def report_folder(self, operator: str) -> Path:
        """Where it leaves facts for the platform."""
        return self.path / "reports" / _plain(operator)

    def control_folder(self, operator: str) -> Path:
        """Where its driver finds what it is told."""
        return self.path / "control" / _plain(operator)

    def _manifest_path(self, operator: str | None) -> Path:
        folder = self.path / "manifests"
        return folder / "input.json" if operator is None else folder / "operators" / f"{_plain(operator)}.json"

    def stage_input(self, source: Path, on_progress: Progress | None = None) -> Manifest:
        """Copy the folder `source` as this payload's sealed input.

        on_progress     called with (bytes done, bytes in all).

        Raises PayloadError when `source` cannot be taken (staging.find_files says when) or an input is there already,
        StorageError when the disk is full or not writable. Whatever happens, half an input is never left.
        """
        if self.input.exists():
            raise PayloadError(f"payload {self.id} has its input already", payload=str(self.id))
        files = find_files(source)
        partial = self.path / ".input.partial"
        needed = sum(file.size for file in files)
        try:
            with naming_storage_problems(self.path, needed_bytes=needed):
                remove_tree(partial)
                manifest = Manifest.of(copy_files(files, partial, on_progress))
                self._seal(partial, self.input, manifest, self._manifest_path(None))
                return manifest
        except BaseException:
            remove_tree(partial)
            raise

    def link_input(self, files: Mapping[str, Path]) -> Manifest:
        """Take these files as this payload's sealed input, by name relative to it; they are hard-linked, not copied.

        They must not be written any more, and lie on the same disk. Raises PayloadError for a name that leads out of
        the input, a file that is none, or an input that is there already; StorageError. Nothing is left then.
        """
        if self.input.exists():
            raise PayloadError(f"payload {self.id} has its input already", payload=str(self.id))
        if not files:
            raise PayloadError(f"payload {self.id} would have no input", payload=str(self.id))
        partial = self.path / ".input.partial"
        try:
            with naming_storage_problems(self.path):
                remove_tree(partial)
                sealed = []
                for name, source in files.items():
                    target = partial.joinpath(*map(_plain, name.split("/")))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not source.is_file() or source.is_symlink():
                        raise PayloadError(f"{source} is no file", path=str(source))
                    target.hardlink_to(source)
                    sealed.append(ManifestFile(name, source.stat().st_size, sha256_of(source)))
                manifest = Manifest.of(sealed)
                self._seal(partial, self.input, manifest, self._manifest_path(None))
                return manifest
        except BaseException:
            remove_tree(partial)
            raise

    def adopt_input(self, earlier: PayloadFolder) -> Manifest:
        """Take over another payload's sealed input; files are hard-linked.

        Raises PayloadError when `earlier` has none, it is not what was sealed any more, or there is an input here;
        StorageError.
        """
        if self.input.exists():
            raise PayloadError(f"payload {self.id} has its input already", payload=str(self.id))
        manifest = earlier.input_manifest()
        if different := earlier.verify():
            raise PayloadError(
                f"the input of payload {earlier.id} is not what was sealed any more: {len(different)} file(s) differ",
                payload=str(earlier.id),
            )
        self._adopt(earlier.input, self.path / ".input.partial", self.input, manifest, self._manifest_path(None))
        return manifest

    def input_manifest(self) -> Manifest:
        """The sealed input's. Raises PayloadError when there is none."""
        manifest = self._read_manifest(None, self.input)
        if manifest is None:
            raise PayloadError(f"payload {self.id} has no sealed input", payload=str(self.id))
        return manifest

    def open_outputs(self, operator: str, outputs: Sequence[str] = (), *, attempt: int = 1) -> Path:
        """A new folder for an attempt's outputs, with a sub-folder for each name in `outputs`. Returns it.

        All that an operator finds at its start exists then: its log, report and control folders, too. What it writes to
        is open to every user below the payload's closed folder, since containers run as users of their own.
        """
        if self.operator_folder(operator).exists():
            raise PayloadError(f"operator {operator!r} of payload {self.id} is sealed already", operator=operator)
        partial = self.partial_folder(operator, attempt=attempt)
        with naming_storage_problems(self.path):
            remove_tree(partial)
            remove_tree(self.report_folder(operator))
            written = [partial, self.report_folder(operator)]
            written += [self.partial_folder(operator, attempt=attempt, output=output) for output in outputs if output]
            for folder in written:
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o777)
            self.control_folder(operator).mkdir(parents=True, exist_ok=True)
            self.log_path(operator).parent.mkdir(parents=True, exist_ok=True)
        return partial

    def seal_outputs(
        self, operator: str, work_digest: str, *, attempt: int = 1, facts: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Make an attempt's outputs final; to be called when nothing writes there any more.

        Raises PayloadError when there is something that is no file, or a symlink out of the folder; StorageError. Then
        the partial folder is still there.
        """
        partial, final = self.partial_folder(operator, attempt=attempt), self.operator_folder(operator)
        if final.exists():
            raise PayloadError(f"operator {operator!r} of payload {self.id} is sealed already", operator=operator)
        with naming_storage_problems(self.path):
            settle_links(partial)
            files = [ManifestFile(name, path.stat().st_size, sha256_of(path)) for name, path in walk(partial)]
            manifest = Manifest.of(files, work_digest=work_digest, facts=facts)
            self._seal(partial, final, manifest, self._manifest_path(operator))
        return manifest

    def sealed(self, operator: str) -> Manifest | None:
        """The manifest of an operator's sealed outputs; None when they are not sealed.

        Its files are not read: `verify` does that. Raises PayloadError when the manifest is lost or broken.
        """
        return self._read_manifest(operator, self.operator_folder(operator))

    def verify(self, operator: str | None = None) -> list[Difference]:
        """Where an operator's sealed outputs (None: the input) are not what was sealed; every byte is read.

        Raises PayloadError when they are not sealed.
        """
        folder = self.input if operator is None else self.operator_folder(operator)
        manifest = self._read_manifest(operator, folder)
        if manifest is None:
            raise PayloadError(f"{folder} is not sealed", path=str(folder))
        return manifest.differences(folder)

    def touched(self) -> datetime:
        """When something was last put into the folder or into one directly below it (UTC). Raises OSError."""
        places = (self.path, *(path for path in self.path.iterdir() if path.is_dir()))
        return datetime.fromtimestamp(max(place.lstat().st_mtime for place in places), UTC)

    def discard_partials(self) -> int:
        """Remove everything unsealed, for a payload that nobody writes to any more. Returns how many folders went."""
        found = [path for path in (self.path, self.path / "operators") if path.is_dir()]
        halves = [half for folder in found for half in folder.iterdir() if re.fullmatch(r"\..+\.partial", half.name)]
        for half in halves:
            remove_tree(half)
        return len(halves)

    def discard_partial(self, operator: str) -> None:
        """Remove what attempts of an operator left unsealed; safe to call twice."""
        pattern = re.compile(rf"\.{re.escape(_plain(operator))}\.\d+\.partial")
        folder = self.path / "operators"
        if folder.is_dir():
            for path in folder.iterdir():
                if pattern.fullmatch(path.name):
                    remove_tree(path)

    def discard_sealed(self, operator: str) -> None:
        """Remove an operator's sealed outputs; safe to call twice. They lose their name first."""
        final, doomed = self.operator_folder(operator), self.partial_folder(operator, attempt=0)
        with naming_storage_problems(self.path):
            remove_tree(doomed)
            if final.exists():
                final.rename(doomed)
                sync(final.parent)
            remove_tree(doomed)

    def adopt(self, operator: str, earlier: PayloadFolder, work_digest: str) -> Manifest | None:
        """Take over an operator's outputs from another payload of the same store; files are hard-linked.

        Returns None, and takes nothing, when `earlier` has no sealed outputs of that work, or they are not what was
        sealed any more (every byte is read). Raises StorageError; PayloadError when there are sealed outputs here.
        """
        if self.operator_folder(operator).exists():
            raise PayloadError(f"operator {operator!r} of payload {self.id} is sealed already", operator=operator)
        source = earlier.operator_folder(operator)
        try:
            manifest = earlier.sealed(operator)
            if manifest is None or manifest.work_digest != work_digest:
                return None
            different = manifest.differences(source)
        except (OSError, PayloadError) as error:
            log.warning("outputs of %r in payload %s are not taken over: %s", operator, earlier.id, error)
            return None
        if different:
            log.warning("outputs of %r in payload %s are not what was sealed", operator, earlier.id)
            return None
        partial, final = self.partial_folder(operator, attempt=0), self.operator_folder(operator)
        self._adopt(source, partial, final, manifest, self._manifest_path(operator))
        return manifest

    def _adopt(self, source: Path, partial: Path, final: Path, manifest: Manifest, manifest_path: Path) -> None:
        """Seal hard links to the files of `source` under `final`; nothing is left when that fails."""
        try:
            with naming_storage_problems(self.path):
                remove_tree(partial)
                shutil.copytree(source, partial, copy_function=os.link)
                self._seal(partial, final, manifest, manifest_path)
        except BaseException:
            remove_tree(partial)
            raise

    def _seal(self, partial: Path, final: Path, manifest: Manifest, manifest_path: Path) -> None:
        """The last steps, in the order that makes a crash harmless."""
        make_read_only(partial)
        sync_all(path for _, path in walk(partial))
        sync_all(Path(folder) for folder, _, _ in os.walk(partial))
        manifest_path.parent.mkdir(parents=True, exist_ok=True)
        sync(manifest_path.parent.parent)
        write_durably(manifest_path, manifest.to_json())
        partial.rename(final)
        sync(final.parent)

    def _read_manifest(self, operator: str | None, folder: Path) -> Manifest | None:
        if not folder.is_dir():
            return None
        path = self._manifest_path(operator)
        try:
            return Manifest.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PayloadError(f"{folder} is sealed, but its manifest {path} is unusable: {error}") from None


class PayloadStore:
    """All payloads of this machine.

    root    usually `<settings.data_dir>/payloads`; made when the first payload is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def folder(self, payload_id: uuid.UUID) -> PayloadFolder:
        """The folder of a payload, whether it exists or not."""
        return PayloadFolder(self.root / payload_id.hex)

    def create(self, payload_id: uuid.UUID | None = None) -> PayloadFolder:
        """A new, empty payload. Raises StorageError; PayloadError when that id exists."""
        folder = self.folder(payload_id or uuid.uuid4())
        with naming_storage_problems(self.root):
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                folder.path.mkdir(mode=0o700)
            except FileExistsError:
                raise PayloadError(f"payload {folder.id} exists already", payload=str(folder.id)) from None
            try:
                (folder.path / "operators").mkdir()
                sync(folder.path)
                sync(self.root)
            except BaseException:
                self.remove(folder.id)
                raise
        return folder

    def stage(self, source: Path, on_progress: Progress | None = None) -> PayloadFolder:
        """A new payload with a copy of the folder `source` as its sealed input; nothing is left when that fails.

        Raises as `PayloadFolder.stage_input` does.
        """
        find_files(source)  # a source that cannot be used leaves no trace at all
        folder = self.folder(uuid.uuid4())
        try:
            self.create(folder.id)
            folder.stage_input(source, on_progress)
        except BaseException:
            self.remove(folder.id)
            raise
        return folder

    def link(self, files: Mapping[str, Path], payload_id: uuid.UUID | None = None) -> PayloadFolder:
        """A new payload whose sealed input are hard links to these files (`PayloadFolder.link_input`)."""
        folder = self.create(payload_id)
        try:
            folder.link_input(files)
        except BaseException:
            self.remove(folder.id)
            raise
        return folder

    def remove(self, payload_id: uuid.UUID) -> None:
        """Delete a payload for good; safe to call twice. Raises StorageError.

        It loses its name first, so that what a crash leaves is no payload any more; `sweep` deletes that.
        """
        path = self.folder(payload_id).path
        doomed = self.root / f".{path.name}.removed"
        with naming_storage_problems(self.root):
            if path.exists():
                path.rename(doomed)
            remove_tree(doomed)

    def sweep(self) -> int:
        """Finish the removals that a crash interrupted. Returns how many there were."""
        found = self._named(r"\.[0-9a-f]{32}\.removed")
        for path in found:
            remove_tree(path)
        return len(found)

    def folders(self) -> list[PayloadFolder]:
        """All payloads that there are; nothing with another name than ours."""
        return [PayloadFolder(path) for path in self._named(r"[0-9a-f]{32}") if path.is_dir() and not path.is_symlink()]

    def _named(self, pattern: str) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(path for path in self.root.iterdir() if re.fullmatch(pattern, path.name))

    def used_percent(self) -> float:
        """How full the payloads' disk is, as df(1) counts: what root keeps back is not for us."""
        place = next(parent for parent in (self.root, *self.root.parents) if parent.exists())
        usage = shutil.disk_usage(place)
        return 100 * usage.used / (usage.used + usage.free)

    def check_room(self, limit_percent: int) -> None:
        """Raise StorageError when more than `limit_percent` of the payloads' disk is used."""
        used_percent = self.used_percent()
        if used_percent > limit_percent:
            raise StorageError(
                f"Payload creation failed. The disk of {self.root} is {used_percent:.0f} % full; new jobs are refused "
                f"above {limit_percent} %. Remove old payloads, or raise CLARA_FLOW_STORAGE_LIMIT_PERCENT.",
                code=LOW_STORAGE_CODE,
                used_percent=used_percent,
                limit_percent=limit_percent,
            )


def _plain(name: str) -> str:
    """`name` when it can be one file name that hides nothing and leads nowhere."""
    if not name or name.startswith(".") or "/" in name or "\0" in name or len(os.fsencode(name)) > 200:
        raise PayloadError(f"{name!r} cannot be the name of a folder", name=name)
    return name


def _below(folder: Path, output: str) -> Path:
    return folder / _plain(output) if output else folder
