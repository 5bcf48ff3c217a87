"""Writing to disk so that it survives a crash: fsync, atomic files, whole folders, and errors that name the place."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clara_flow.errors import StorageError

SYNC_THREADS = 8  # a journalling file system commits fsyncs that arrive together in one go
SYNC_FILE_RANGE_WRITE = 2  # of linux/fs.h: begin to write dirty pages, wait for nothing
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def begin_to_sync(descriptor: int, offset: int, size: int) -> None:
    """Let the disk begin with a part of a file that grows, so that the fsync at its end has little left to wait for.

    A hint: nothing is durable by it, and where the system does not take it nothing happens.
    """
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, size, SYNC_FILE_RANGE_WRITE)


def sync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(paths: Iterable[Path]) -> None:
    """Flush many files or folders."""
    paths = list(paths)
    if len(paths) == 1:  # a thread would take longer to start
        sync(paths[0])
        return
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        for _ in pool.map(sync, paths):
            pass


def write_durably(path: Path, text: str) -> None:
    """Put `text` in the file `path`: after a crash the file is the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_read_only(folder: Path) -> None:
    """Let nobody write in a folder and everybody read: whoever must not read is kept out by a folder above it."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            (Path(parent) / name).chmod(0o444)
        Path(parent).chmod(0o555)


def remove_tree(folder: Path) -> None:
    """Remove a folder, read-only or not; safe to call twice and beside another remover."""
    with contextlib.suppress(FileNotFoundError):
        folder.chmod(stat.S_IRWXU)
    for parent, names, _ in os.walk(folder):  # top-down: a folder is opened before it is listed
        for path in (Path(parent) / name for name in names):
            if not path.is_symlink():
                with contextlib.suppress(FileNotFoundError):
                    path.chmod(stat.S_IRWXU)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def is_full(error: OSError) -> bool:
    """Whether the disk or a quota has no room left."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def mib(size_bytes: int) -> str:
    """A size for people, in MiB."""
    return f"{size_bytes / 2**20:.1f} MiB"


@contextlib.contextmanager
def naming_storage_problems(folder: Path, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the operating system's refusals to write below `folder` into StorageError.

    needed_bytes    what the operation wants to write in all, where that is known.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise disk_full(folder, needed_bytes=needed_bytes) from None
        raise StorageError(
            f"cannot write below {folder}: {error.strerror} ({error.filename}). Make it writable for this user, "
            "or set CLARA_FLOW_DATA_DIR to another folder.",
            path=str(folder),
        ) from error


def disk_full(folder: Path, *, needed_bytes: int | None = None) -> StorageError:
    """The error for a disk without enough room, with what is needed and what is free, in bytes and for people."""
    free_bytes = shutil.disk_usage(folder).free if folder.exists() else 0
    need = f"{mib(needed_bytes)} are needed and " if needed_bytes is not None else ""
    return StorageError(
        f"the disk of {folder} is full: {need}{mib(free_bytes)} are free. Remove old payloads, "
        "or set CLARA_FLOW_DATA_DIR to a larger disk.",
        path=str(folder),
        needed_bytes=needed_bytes,
        free_bytes=free_bytes,
    )
