"""The peer, as one writes it with Prefect alone: no-op operators in a row, each a process of the same program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from prefect import flow, task


@task(persist_result=False)
def operator(source: str, folder: str, program: str, stamp: str) -> str:
    """One operator in a process; the folder of its output."""
    out = Path(folder) / "out"
    out.mkdir(parents=True)
    manifest = Path(folder) / "io.json"
    manifest.write_text(json.dumps({"inputs": [{"path": source}], "outputs": [{"path": str(out)}]}))
    environment = {
        "CLARA_IO_MANIFEST": str(manifest),
        "NOOP_STAMP": stamp,
        "PATH": os.environ["PATH"],
    }
    subprocess.run([sys.executable, program], env=environment, check=True)
    return str(out)


@flow(persist_result=False)
async def chain(source: str, folder: str, program: str, stamp: str, length: int) -> None:
    """`length` operators in a row; only the first one stamps."""
    for number in range(length):
        source = operator(source, f"{folder}/{number}", program, stamp if number == 0 else "")
