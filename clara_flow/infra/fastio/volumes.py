"""FastIO volumes: shared memory of one job, in which its operators hand over arrays without a copy.

Below the root (in /dev/shm) a volume is a folder, and beside it a record of who made it:

    <job id>.<token>        where operators read and write; a tmpfs of its own where this account may mount one
    <job id>.<token>.json   {"owner": ..., "size_mib": ...}; made before the folder, whole; removed after it

A tmpfs of its own cannot grow beyond its size. Elsewhere a volume is a plain folder: whoever runs operators looks at
`used_bytes` and stops a job that takes more than it has (`is_overfull`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_flow.errors import StorageError
from clara_flow.infra.launchers.owner import Owner
from clara_flow.records.durable import remove_tree

MIB = 2**20
RECORD = ".json"
FILES_PER_MIB = 64  # inodes of a tmpfs are memory, too, and its size does not count them
LEAST_FILES = 1024
ALL_BUT_FULL_BYTES = 64 * 2**10

# linux/mount.h
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

log = logging.getLogger(__name__)


def default_root() -> Path:
    """Each account has its own: /dev/shm is everybody's."""
    return Path(f"/dev/shm/clara-flow-{os.geteuid()}")  # noqa: S108


@dataclass(frozen=True, slots=True, kw_only=True)
class FastIOVolume:
    """One job's shared memory.

    path        where the job's operators read and write.
    size_mib    what the job may put there.
    hard        the kernel sees to that; else `is_overfull` tells.
    """

    job_id: str
    path: Path
    size_mib: int
    hard: bool

    def used_bytes(self) -> int:
        """Memory that its files take, in whole pages; 0 when it is gone."""
        try:
            if self.hard:
                state = os.statvfs(self.path)
                return (state.f_blocks - state.f_bfree) * state.f_frsize
            return _tree_bytes(self.path)
        except FileNotFoundError:
            return 0

    def is_overfull(self) -> bool:
        """Whether it holds more than it may; never true of a hard one."""
        return not self.hard and self.used_bytes() > self.size_mib * MIB

    def is_full(self) -> bool:
        """Whether an operator that failed may have failed for want of shared memory."""
        return self.used_bytes() > self.size_mib * MIB - ALL_BUT_FULL_BYTES

    def remove(self) -> None:
        """Give its memory back, also when operators still have it mapped or mounted. Safe to call twice.

        Raises StorageError when something of it is left.
        """
        _empty(self.path)  # the memory is free now, even where another mount namespace keeps the mount
        _unmount(self.path)
        try:
            with contextlib.suppress(FileNotFoundError):
                self.path.rmdir()
            _record_of(self.path).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"the FastIO volume {self.path} cannot be removed: {error.strerror}") from None


class FastIOVolumes:
    """All FastIO volumes of this account on this machine.

    root        folder of ours on a tmpfs, made when needed.
    may_mount   False: plain folders also where a tmpfs could be mounted.
    """

    def __init__(self, root: Path | None = None, *, may_mount: bool = True) -> None:
        self.root = root or default_root()
        self.may_mount = may_mount

    def create(self, job_id: uuid.UUID | str, size_mib: int, owner: Owner | None = None) -> FastIOVolume:
        """An empty volume for a job. Blocks for less than a millisecond.

        owner       who will remove it; when that process is gone, `reap` does. Unset: this process.

        Raises StorageError, naming sizes, when shared memory has no room for it or cannot be used.
        """
        job = str(job_id)
        try:
            self._make_root()
            path = self.root / f"{job}.{uuid.uuid4().hex}"
            _write_record(path, {"owner": str(owner or Owner.current()), "size_mib": size_mib})
            volume = FastIOVolume(job_id=job, path=path, size_mib=size_mib, hard=False)
            try:
                self._check_room(volume)
                path.mkdir(mode=0o700)
                if self.may_mount and _mount(path, size_mib):
                    volume = FastIOVolume(job_id=job, path=path, size_mib=size_mib, hard=True)
            except BaseException:
                volume.remove()
                raise
        except OSError as error:
            raise StorageError(f"shared memory {self.root} cannot be used: {error.strerror}") from None
        return volume

    def open(self, job_id: uuid.UUID | str) -> FastIOVolume:
        """The volume of a job. Raises StorageError when it has none."""
        for volume, _ in self._found():
            if volume.job_id == str(job_id) and volume.path.is_dir():
                return volume
        raise StorageError(f"job {job_id} has no FastIO volume in {self.root}")

    def total_mib(self) -> int:
        """What all volumes may take together."""
        return sum(volume.size_mib for volume, _ in self._found())

    def used_bytes(self) -> int:
        """What all volumes take together."""
        return sum(volume.used_bytes() for volume, _ in self._found())

    def reap(self, job_is_alive: Callable[[str], bool]) -> list[str]:
        """Remove the volumes whose owner is gone, and halves of volumes; what a living owner has is never touched.

        job_is_alive    asked only about volumes whose owner cannot be looked up from here.

        Returns the ids of their jobs.
        """
        reaped = []
        for volume, owner in self._found():
            job_id = volume.job_id
            if owner.is_gone(job_id=job_id, job_is_alive=job_is_alive) if owner else not job_is_alive(job_id):
                try:
                    volume.remove()
                except StorageError as error:
                    log.warning("%s", error)
                else:
                    reaped.append(job_id)
        return reaped

    def _found(self) -> Iterator[tuple[FastIOVolume, Owner | None]]:
        """Every volume, whole or half, with its owner; None where the record is lost or broken."""
        try:
            names = {entry.name.removesuffix(RECORD) for entry in self.root.glob("*.*")}
        except FileNotFoundError:  # nobody has made a volume yet
            return
        for name in sorted(names):
            path, job_id = self.root / name, name.rpartition(".")[0]
            owner, size_mib = _read_record(path)
            yield FastIOVolume(job_id=job_id, path=path, size_mib=size_mib, hard=path.is_mount()), owner

    def _make_root(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = self.root.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
            raise StorageError(
                f"{self.root} is not a folder of this account's alone, so no job's data can lie there; remove it"
            )

    def _check_room(self, volume: FastIOVolume) -> None:
        """Sizes of all volumes, its own included, beside what others have in that memory."""
        state = os.statvfs(self.root)
        total = state.f_blocks * state.f_frsize
        ours = [other for other, _ in self._found()]
        soft_bytes = sum(other.used_bytes() for other in ours if not other.hard)
        foreign_bytes = total - state.f_bfree * state.f_frsize - soft_bytes
        promised_mib = sum(other.size_mib for other in ours if other.path != volume.path)
        room_mib = (total - foreign_bytes) // MIB - promised_mib
        if volume.size_mib > room_mib:
            raise StorageError(
                f"no room for a FastIO volume of {volume.size_mib} MiB: {self.root.parent} has {total // MIB} MiB, of "
                f"which other jobs' volumes may take {promised_mib} MiB and other programs have "
                f"{foreign_bytes // MIB} MiB. Wait for those to end, lower `fastio` of the pipeline, or make "
                f"{self.root.parent} larger.",
                size_mib=volume.size_mib,
                room_mib=max(0, room_mib),
            )


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + RECORD)


def _write_record(path: Path, facts: dict[str, Any]) -> None:
    """It has its name only when it is whole: what dies before leaves nothing."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.fdopen(os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600), "w") as file:
            json.dump(facts, file)
            file.flush()
            os.link(f"/proc/self/fd/{file.fileno()}", _record_of(path).name, dst_dir_fd=folder)  # linkat(2), O_TMPFILE
    finally:
        os.close(folder)


def _read_record(path: Path) -> tuple[Owner | None, int]:
    try:
        facts = json.loads(_record_of(path).read_text(encoding="utf-8"))
        return Owner.parse(facts["owner"]), facts["size_mib"]
    except (FileNotFoundError, ValueError, KeyError):
        return None, 0


def _mount(path: Path, size_mib: int) -> bool:
    """A tmpfs of that size on an empty folder; False, and nothing changed, where this account or machine cannot."""
    files = max(LEAST_FILES, size_mib * FILES_PER_MIB)
    options = f"size={size_mib}m,nr_inodes={files},mode=0700"
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if _libc().mount(b"clara-flow", os.fsencode(path), b"tmpfs", ctypes.c_ulong(flags), options.encode()) != 0:
        log.debug("no tmpfs for %s: %s", path, os.strerror(ctypes.get_errno()))
        return False
    try:
        state = os.statvfs(path)
        probe = path / "probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        log.debug("the tmpfs of %s cannot be used: %s", path, error.strerror)
    else:
        if state.f_blocks * state.f_frsize == size_mib * MIB:
            return True
    _unmount(path)
    return False


def _unmount(path: Path) -> None:
    """Take every mount off a folder; who still uses one keeps it until it ends."""
    while _libc().umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW) == 0:
        pass


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _empty(folder: Path) -> None:
    """Remove what can be removed in a folder."""
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            else:
                entry.unlink(missing_ok=True)


def _tree_bytes(folder: Path) -> int:
    """Memory of all files of a folder of a tmpfs, whose blocks are of 512 bytes (stat(2)); a link counts once."""
    blocks: dict[int, int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed since
                state = (Path(parent) / name).lstat()
                blocks[state.st_ino] = state.st_blocks
    return sum(blocks.values()) * 512
