"""Copying a user's folder into a payload: every file checked, hashed on the way."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clara_flow.errors import PayloadError
from clara_flow.records.durable import disk_full
from clara_flow.records.manifest import ManifestFile

BLOCK_BYTES = 1 << 20
SPARE_BYTES = 16 << 20  # left free beside the copy, for manifests, logs and the database

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to copy: its name relative to the source, where it really lies, its size in bytes."""

    name: str
    path: Path
    size: int


def find_files(source: Path) -> list[SourceFile]:
    """The files below `source`, sorted by name.

    A symlink is followed where it stays inside of `source`. Raises PayloadError naming what cannot be taken: a symlink
    that leaves the folder, dangles or runs in a circle; a device, pipe or socket; a file that cannot be read; nothing.
    """
    if not source.is_dir():
        raise PayloadError(f"{source} is no folder", path=str(source))
    root = source.resolve()
    try:
        files = list(_files_below(root, root, "", (root,)))
    except OSError as error:
        raise PayloadError(f"cannot read {error.filename}: {error.strerror}", path=str(error.filename)) from None
    if not files:
        raise PayloadError(f"{source} holds no files", path=str(source))
    return sorted(files, key=lambda file: os.fsencode(file.name))


def _files_below(root: Path, folder: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[SourceFile]:
    with os.scandir(folder) as listing:
        entries = list(listing)
    for entry in entries:
        name, path = prefix + entry.name, Path(entry.path)
        if entry.is_symlink():
            path = Path(os.path.realpath(path))  # Path.resolve raises on a loop
            if not path.is_relative_to(root):
                raise PayloadError(f"{name!r} is a symbolic link that leads out of the folder", name=name)
            if not path.exists():
                raise PayloadError(f"{name!r} is a symbolic link to nothing", name=name)
            if path in above:
                raise PayloadError(f"{name!r} is a symbolic link to a folder that it lies in", name=name)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            yield from _files_below(root, path, f"{name}/", (*above, path))
        elif stat.S_ISREG(mode):
            yield SourceFile(name, path, path.stat().st_size)
        else:
            raise PayloadError(f"{name!r} is no file but a device, pipe or socket", name=name)


def copy_files(files: list[SourceFile], target: Path, on_progress: Progress | None = None) -> list[ManifestFile]:
    """Copy `files` below the new folder `target` (not flushed to the disk yet). Returns them with their checksums.

    Raises StorageError when the disk has not room enough, before the first byte or on the way; PayloadError when a
    file cannot be read or changes while it is copied; OSError when `target` cannot be written.
    """
    total = sum(file.size for file in files)
    if shutil.disk_usage(target.parent).free < total + SPARE_BYTES:
        raise disk_full(target.parent, needed_bytes=total + SPARE_BYTES)
    target.mkdir()
    copied, done = [], 0
    for file in files:
        destination = target / file.name
        destination.parent.mkdir(parents=True, exist_ok=True)

        def report(count: int, before: int = done) -> None:
            if on_progress is not None:
                on_progress(before + count, total)

        copied.append(_copy(file, destination, report))
        done += file.size
    return copied


def _copy(file: SourceFile, destination: Path, report: Callable[[int], None]) -> ManifestFile:
    digest, done = hashlib.sha256(), 0
    try:
        source = file.path.open("rb", buffering=0)
    except OSError as error:
        raise PayloadError(f"cannot read {file.name!r}: {error.strerror}", name=file.name) from None
    with source, destination.open("xb", buffering=0) as target:
        before = os.fstat(source.fileno())
        while done <= file.size:  # one that grows as fast as it is read must end, too
            try:
                block = source.read(BLOCK_BYTES)
            except OSError as error:
                raise PayloadError(f"cannot read {file.name!r}: {error.strerror}", name=file.name) from None
            if not block:
                break
            digest.update(block)
            rest = memoryview(block)
            while rest:
                rest = rest[target.write(rest) :]
            done += len(block)
            report(done)
        after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or done != file.size:
        raise PayloadError(f"{file.name!r} changes while it is copied; try again when it is complete", name=file.name)
    return ManifestFile(file.name, done, digest.hexdigest())
