"""The go: how an operator that was started before its inputs were there learns that they are.

The manifest's `go` is a FIFO that the platform holds open for writing. It gets one line of JSON, {"gpus": [UUID, ...]},
when every input is sealed and the operator's GPUs are its own. Its end without a line comes when the platform dies.
"""

from __future__ import annotations

import json
import os
import select
from pathlib import Path

from clara_flow.operators.sdk.payload import DriverError

VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
READ_BYTES = 4096


def wait_for_go(path: Path) -> tuple[str, ...]:
    """Block, without polling, until the platform says go; then only the operator's own GPUs are visible to CUDA.

    Returns their UUIDs. Raises DriverError when the platform is gone or says something else.
    """
    try:
        line = _read_line(path)
        gpus = tuple(json.loads(line)["gpus"])
        if not all(isinstance(gpu, str) for gpu in gpus):
            raise TypeError(f"GPUs {gpus!r}")
    except OSError as problem:
        raise DriverError(f"the go {path} cannot be read: {problem.strerror}") from None
    except (ValueError, KeyError, TypeError) as problem:
        raise DriverError(f"the go {path} cannot be understood: {problem}") from None
    for variable in VISIBLE_DEVICES:
        os.environ[variable] = ",".join(gpus)
    return gpus


def _read_line(path: Path) -> bytes:
    fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # to wait for a writer here could be to wait for ever
    try:
        poller, line = select.poll(), b""
        poller.register(fifo, select.POLLIN)
        while not line.endswith(b"\n"):
            try:
                block = os.read(fifo, READ_BYTES)
            except BlockingIOError:  # the platform lives and has said nothing yet
                poller.poll()
                continue
            if not block:
                raise DriverError("the platform ended before it gave the go")
            line += block
        return line
    finally:
        os.close(fifo)
