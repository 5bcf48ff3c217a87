"""dcmtk, somebody else's DICOM: its programs as peers. A test that needs one is skipped where it is not installed."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from platform_fixture import free_port
from waiting import eventually

from clara_flow.cli.wire_job import dcmtk as place_of  # pynetdicom has programs of the same names

ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}  # Debian's dcmtk leaves Nagle's algorithm on


def program(name: str) -> str:
    """The path of one of its programs; skips the test where there is none."""
    if not (found := place_of(name)):
        pytest.skip(f"dcmtk is not installed: no {name}")
    return found


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of its programs to its end."""
    return subprocess.run(
        [program(name), *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


def answers(port: int) -> bool:
    """Whether somebody listens on that port of this machine."""
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


class Server:
    """One of its servers on a free port of this machine: it can be killed, and started again there.

    arguments   `{port}` in them is the port.
    """

    def __init__(self, name: str, *arguments: str | Path) -> None:
        self.program, self.arguments, self.port = program(name), arguments, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it listens."""
        arguments = [str(argument).replace("{port}", str(self.port)) for argument in self.arguments]
        self._process = subprocess.Popen(
            [self.program, *arguments], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(lambda: answers(self.port), within_s=20)

    def kill(self) -> None:
        """At once; safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Storescp(Server):
    """storescp with these options; what it takes lies in `folder`."""

    def __init__(self, folder: Path, *options: str | Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.options = folder, options
        super().__init__("storescp")

    def start(self) -> None:
        self.arguments = (*self.options, "--output-directory", self.folder, "{port}")
        super().start()

    @property
    def received(self) -> list[Path]:
        """The files so far."""
        return sorted(self.folder.iterdir())

    def __enter__(self) -> Storescp:
        self.start()
        return self
