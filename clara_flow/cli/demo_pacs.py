"""A PACS for the demo: Orthanc where it is installed, a small storage SCP of ours elsewhere. Both on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clara_flow.errors import ServiceError

START_S = 20.0
POLL_S = 0.1
ORTHANC = "ORTHANC"


class DemoPacs(Protocol):
    """Where the demo's results arrive. `page` is "" where there is none."""

    @property
    def title(self) -> str:
        """What people call it."""

    @property
    def ae_title(self) -> str:
        """Its AE title."""

    @property
    def port(self) -> int:
        """Its DICOM port."""

    @property
    def page(self) -> str:
        """Where people look at it."""

    def holds(self, sop_instance_uid: str) -> bool:
        """Whether that instance has arrived."""


@contextmanager
def demo_pacs(folder: Path) -> Iterator[DemoPacs]:
    """Runs until the end of the block, with its files below `folder`. Raises ServiceError when it does not start."""
    program = shutil.which("Orthanc")
    with _orthanc(program, folder) if program else _own(folder) as pacs:
        yield pacs


@dataclass(frozen=True, slots=True)
class Orthanc:
    """A real one."""

    port: int
    page: str
    title: str = "Orthanc"
    ae_title: str = ORTHANC

    def holds(self, sop_instance_uid: str) -> bool:
        """Asks its REST interface."""
        import httpx

        answer = httpx.post(f"{self.page}/tools/lookup", content=sop_instance_uid)
        return bool(answer.raise_for_status().json())


@contextmanager
def _orthanc(program: str, folder: Path) -> Iterator[Orthanc]:
    import httpx

    port, http_port = _free_port(), _free_port()
    config = {
        "Name": "clara-flow demo",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": ORTHANC,
        "DicomPort": port,
        "DicomCheckCalledAet": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "orthanc.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    pacs = Orthanc(port, f"http://127.0.0.1:{http_port}")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(path)],
            env={**os.environ, "TCP_NODELAY": "1"},  # dcmtk waits 40 ms for each answer without
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at the terminal is ours to pass on
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                httpx.get(f"{pacs.page}/system").raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServiceError(
                        "Orthanc",
                        "it does not start",
                        remedy="Look into its log.",
                        log_path=str(folder / "orthanc.log"),
                    ) from None
                time.sleep(POLL_S)
        yield pacs
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class OwnPacs:
    """Keeps what it is sent as files."""

    port: int
    folder: Path
    title: str = "a storage SCP of ours (Orthanc is not installed)"
    ae_title: str = "DEMO-PACS"
    page: str = ""

    def holds(self, sop_instance_uid: str) -> bool:
        """Looks for its file."""
        return (self.folder / f"{sop_instance_uid}.dcm").is_file()


@contextmanager
def _own(folder: Path) -> Iterator[OwnPacs]:
    from pynetdicom import AE, evt
    from pynetdicom.presentation import AllStoragePresentationContexts, VerificationPresentationContexts

    folder.mkdir(parents=True, exist_ok=True)
    pacs = OwnPacs(_free_port(), folder)

    def keep(event: evt.Event) -> int:
        uid = "".join(letter for letter in str(event.dataset.SOPInstanceUID) if letter in "0123456789.")
        partial = folder / f".{uid}.partial"
        partial.write_bytes(event.encoded_dataset())
        partial.replace(folder / f"{uid}.dcm")
        return 0

    node = AE(ae_title=pacs.ae_title)
    node.supported_contexts = AllStoragePresentationContexts + VerificationPresentationContexts
    server = node.start_server(("127.0.0.1", pacs.port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield pacs
    finally:
        if server is not None:
            server.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
