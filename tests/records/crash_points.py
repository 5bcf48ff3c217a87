"""Ends a scenario before its 1st, 2nd, 3rd ... file operation, in a process of its own, and looks at what is left.

Python tells an audit hook of each file operation just before it is done; the hook ends the process (kill), or raises
Ctrl-C or a full disk there. Usage: crash_points.py kill|interrupt|full FOLDER; prints the number of points tried.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clara_flow.errors import StorageError
from clara_flow.records.payload_store import PayloadFolder, PayloadStore

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.chmod", "os.link", "os.remove", "os.rmdir", "os.scandir"}
EARLIER, LATER = uuid.UUID(int=1), uuid.UUID(int=2)


class Trap:
    """Counts file operations below `root` and springs at number `point`."""

    def __init__(self, root: Path, point: int, spring: Callable[[], None]) -> None:
        self.root, self.point, self.spring = str(root), point, spring
        self.count = 0
        self.armed = True
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event in OPERATIONS and str(arguments[0]).startswith(self.root):
            self.count += 1
            if self.count == self.point:
                self.armed = False
                self.spring()


def write_outputs(folder: PayloadFolder, operator: str, attempt: int) -> None:
    partial = folder.open_outputs(operator, ["masks"], attempt=attempt)
    (partial / "masks" / "a.nii").write_bytes(b"voxels" * 1000)
    (partial / "masks" / "link").symlink_to("a.nii")
    folder.seal_outputs(operator, "work", attempt=attempt)


def whole_life(store: PayloadStore, source: Path) -> None:
    """Everything a payload goes through, beginning with what another run may have left."""
    store.sweep()
    for payload_id in (EARLIER, LATER):
        folder = store.folder(payload_id)
        if not folder.input.exists():
            store.remove(payload_id)
            store.create(payload_id).stage_input(source)
    earlier, later = store.folder(EARLIER), store.folder(LATER)
    for folder in (earlier, later):
        folder.discard_partial("seg")
    if not earlier.sealed("seg"):
        write_outputs(earlier, "seg", attempt=1)
    if not later.sealed("seg"):
        assert later.adopt("seg", earlier, "work")
    store.remove(EARLIER)


def check(store: PayloadStore) -> None:
    """Whatever is sealed is whole and as it was meant; nothing half has a final name."""
    for payload_id in (EARLIER, LATER):
        folder = store.folder(payload_id)
        if folder.input.exists():
            assert folder.verify() == []
            assert len(folder.input_manifest().files) == 3
        if folder.operator_folder("seg").exists():
            assert folder.verify("seg") == []
            manifest = folder.sealed("seg")
            assert manifest
            assert [file.name for file in manifest.files] == ["masks/a.nii", "masks/link"]
            assert not any(path.stat().st_mode & 0o222 for path in folder.operator_folder("seg").rglob("*"))


def kill_everywhere(store: PayloadStore, source: Path) -> int:
    for point in range(1, 1000):
        child = os.fork()
        if child == 0:
            Trap(store.root, point, lambda: os.kill(os.getpid(), signal.SIGKILL))
            whole_life(store, source)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        check(store)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return point - 1
        whole_life(store, source)  # what the next start does
        check(store)
        assert [path.name for path in store.root.iterdir()] == [LATER.hex]
        assert [path.name for path in store.folder(LATER).path.joinpath("operators").iterdir()] == ["seg"]
        store.remove(LATER)
    raise AssertionError("no end")


def raise_everywhere(
    store: PayloadStore, source: Path, kind: type[BaseException], expected: type[BaseException]
) -> int:
    """Staging fails before each of its operations: nothing is ever left."""
    for point in range(1, 1000):

        def spring() -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "x") if kind is OSError else kind()

        trap = Trap(store.root, point, spring)
        try:
            folder = store.stage(source)
        except expected:
            assert list(store.root.iterdir() if store.root.exists() else []) == [], point
        else:
            if trap.armed:
                return point - 1
            check(store)
            store.remove(folder.id)
        finally:
            trap.armed = False
    raise AssertionError("no end")


def main(how: str, folder: Path) -> None:
    source, store = folder / "source", PayloadStore(folder / "store")
    (source / "series").mkdir(parents=True)
    for name in ("1.dcm", "2.dcm", "series/3.dcm"):
        (source / name).write_bytes(name.encode() * 5000)
    if how == "kill":
        tried = kill_everywhere(store, source)
    elif how == "interrupt":
        tried = raise_everywhere(store, source, KeyboardInterrupt, KeyboardInterrupt)
    else:
        tried = raise_everywhere(store, source, OSError, StorageError)
    shutil.rmtree(source)
    sys.stdout.write(f"{tried}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
