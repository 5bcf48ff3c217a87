"""What an operator has instead of its inputs when it is started before those are sealed."""

from __future__ import annotations

import json
import os
import select
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clara_flow.records.durable import remove_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyFolders:
    """Two things in an operator's control folder.

    go          FIFO that tells its driver when the inputs are there (`operators/sdk/go.py`).
    inputs      folder with a sub-folder for each input that is still being made, named by its position; it gets hard
                links to the sealed files. None where an operator sees this machine's own paths, which need not exist
                when it starts.
    """

    go: Path
    inputs: Path | None = None

    def staged(self, position: int) -> Path | None:
        """The sub-folder of an input; None where there is none."""
        return self.inputs / str(position) if self.inputs is not None else None

    def make(self, positions: Sequence[int]) -> int:
        """Make the FIFO, and empty folders for the inputs at these positions.

        Returns a descriptor of the FIFO: as long as it is open the operator waits, and without a go its end is the
        operator's.
        """
        self.remove()
        os.mkfifo(self.go)
        self.go.chmod(0o644)  # containers read it as users of their own
        for position in positions:
            if (folder := self.staged(position)) is not None:
                folder.mkdir(parents=True)
        return os.open(self.go, os.O_RDWR | os.O_CLOEXEC)  # opened for writing alone it would wait for a reader

    def fill(self, sealed: Mapping[int, Path]) -> None:
        """Link the files of each sealed folder into the sub-folder of its input; nothing is copied."""
        for position, source in sealed.items():
            if (folder := self.staged(position)) is not None:
                shutil.copytree(source, folder, copy_function=os.link, dirs_exist_ok=True)

    def remove(self) -> None:
        """Remove both; safe to call twice."""
        self.go.unlink(missing_ok=True)
        if self.inputs is not None:
            remove_tree(self.inputs)


def say_go(descriptor: int, gpus: Sequence[str]) -> None:
    """Tell the driver that its inputs are there, and which GPUs (UUIDs) are its own."""
    os.write(descriptor, json.dumps({"gpus": list(gpus)}).encode() + b"\n")


def take_back_go(descriptor: int) -> bool:
    """Whether the go was still there: nobody had read it."""
    os.set_blocking(descriptor, False)
    try:
        return bool(os.read(descriptor, select.PIPE_BUF))
    except BlockingIOError:
        return False
