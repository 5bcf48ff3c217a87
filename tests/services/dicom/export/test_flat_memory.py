"""A delivery of any size costs an exporter some PDUs, or pieces of a request: Clara's held a whole task in memory."""

from __future__ import annotations

import contextlib
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dcmtk import Storescp
from services.dicom.export.export_world import World
from services.dicom.export.images import image, write

from clara_flow.records.dicom_models import ItemState
from clara_flow.services.dicom.export.dimse import DimseSender
from clara_flow.services.dicom.export.files import Outgoing, outgoing
from clara_flow.services.dicom.export.leases import Hold
from clara_flow.services.dicom.export.proposals import Node
from clara_flow.services.dicom.export.sender import Sender
from clara_flow.services.dicom.export.stow import StowSender

SIDE = 2048  # 8 MiB each
FILES = 4
LIMIT_BYTES = 3 * 2**20


class Drain(BaseHTTPRequestHandler):
    """Reads requests away, and answers 200."""

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 65_536)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def drain() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Drain) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def files(world: World, tmp_path: Path) -> list[Outgoing]:
    payload_id, uris = world.payload(*(write(image(SIDE, seed=n), tmp_path / f"{n}.dcm") for n in range(FILES)))
    folder = world.house.store.folder(payload_id)
    return [outgoing(folder, uri) for uri in uris]


def most_bytes(sender: Sender, files: list[Outgoing]) -> int:
    """What sending them takes at most, beyond what there was before."""
    told: list[ItemState] = []
    hold = Hold(uuid.uuid4(), uuid.uuid4(), until=0)
    sender.send(files[:1], lambda file, verdict: None, hold)  # imports and caches
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        sender.send(files[1:], lambda file, verdict: told.append(verdict.state), hold)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        sender.close()
    assert told == [ItemState.SENT] * (FILES - 1)
    return most - before


def test_c_store(files: list[Outgoing], storescp: Callable[..., Storescp]) -> None:
    node = Node(host="127.0.0.1", port=storescp("+B").port, called="PEER", calling="ME", timeout_s=60)
    assert most_bytes(DimseSender(node), files) < LIMIT_BYTES


def test_stow_rs(files: list[Outgoing]) -> None:
    with drain() as port:
        assert most_bytes(StowSender(f"http://127.0.0.1:{port}", timeout_s=60), files) < LIMIT_BYTES
