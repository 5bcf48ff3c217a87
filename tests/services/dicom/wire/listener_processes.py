"""Listener processes on one port, as the adapter starts them, without a platform."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from waiting import eventually

from clara_flow.services.dicom import heartbeats
from clara_flow.services.dicom.journal_entries import Closed, Stored
from clara_flow.services.dicom.spool import Spool

PROGRAM = """
import sys
from pathlib import Path
from clara_flow.services.dicom.wire.listener import ListenerOptions, run
folder, number, port, limit = Path(sys.argv[1]), *map(int, sys.argv[2:])
run(ListenerOptions(
    number=number, host="127.0.0.1", port=port, spool=folder / "spool", config=folder / "spool/config.json",
    heartbeats=folder / "heartbeats", fsync=True, watermark_percent=100, reserve_mib=0, maximum_associations=limit,
))
"""


class Processes:
    """Listener processes on one port."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self.port = 0
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *, limit: int = 25) -> subprocess.Popen[bytes]:
        """One more; returns when it listens."""
        number = len(self.running)
        command = [sys.executable, "-c", PROGRAM, str(self.folder), str(number), str(self.port), str(limit)]
        process = subprocess.Popen(command)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self.running.append(process)
        eventually(lambda: self.facts(number), within_s=30)
        self.port = int(self.facts(number)["port"])
        return process

    def facts(self, number: int) -> dict[str, int]:
        """What it says of itself."""
        beats = {beat.name: beat for beat in heartbeats.read_all(self.folder / "heartbeats")}
        beat = beats.get(f"listener-{number}")
        return dict(beat.facts) if beat else {}

    def entries(self) -> list[Stored | Closed]:
        """What all journals say."""
        reader = Spool(self.folder / "spool").reader()
        found = [entry for name in reader.names() for entry in reader.entries(name)]
        return [entry for entry in found if isinstance(entry, Stored | Closed)]
