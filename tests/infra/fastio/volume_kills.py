"""Kills the maker of FastIO volumes before each line of its code, one process for each, and reaps what it leaves.

Usage: volume_kills.py ROOT mount|folder; prints how many lines there were.
"""

from __future__ import annotations

import os
import signal
import sys
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

from clara_flow.infra.fastio import volumes
from clara_flow.infra.fastio.volumes import FastIOVolumes


def die_at(line: int) -> None:
    """End this process, as `kill -9` would, before it runs its `line`th line of volumes.py."""
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != volumes.__file__:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def life(store: FastIOVolumes) -> None:
    """A volume from its making to its end, with files in it."""
    volume = store.create(uuid.uuid4(), 1)
    (volume.path / "folder").mkdir()
    (volume.path / "folder" / "block").write_bytes(b"voxels")
    volume.remove()


def main(root: Path, kind: str) -> int:
    """Returns the number of lines of a life that nobody ends."""
    store = FastIOVolumes(root, may_mount=kind == "mount")
    neighbour = store.create(uuid.uuid4(), 1)
    (neighbour.path / "block").write_bytes(b"voxels")
    line = 0
    while True:
        line += 1
        child = os.fork()
        if child == 0:
            die_at(line)
            life(store)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        store.reap(lambda job_id: True)  # the living neighbour keeps its own
        assert {path.name.removesuffix(".json") for path in root.iterdir()} == {neighbour.path.name}, line
        assert (neighbour.path / "block").read_bytes() == b"voxels"
        assert Path("/proc/self/mounts").read_text().count(str(root)) == int(neighbour.hard), line
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            neighbour.remove()
            return line - 1


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2]))
