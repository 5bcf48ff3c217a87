"""A DICOMweb or FHIR server that answers a byte at a time holds nobody for ever: a request has a limit as a whole."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from services.dicom.export.export_world import MakeWorld
from services.dicom.export.stow_peer import stow_peer

from clara_flow.errors import InputError
from clara_flow.records.dicom_models import DeliveryState
from clara_flow.services.dicom import inference_fetch
from clara_flow.services.dicom.export import stow
from clara_flow.services.dicom.inference_request import Connection, Resource

AGENT = "DICOMweb"
HEAD = b"HTTP/1.1 200 OK\r\nX-Slow: "
BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
WHAT = pytest.mark.parametrize("first", [HEAD, BODY, ENDLESS], ids=["head", "body", "a body without a length"])


@contextlib.contextmanager
def dripping(first: bytes) -> Iterator[int]:
    """A port where each request is answered with `first`, and then a byte now and then, without end."""
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            connection.sendall(first)
            while not over.wait(0.05):
                connection.sendall(b"x")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)


@WHAT
def test_a_delivery_to_it_is_tried_again_and_says_why(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(stow, "SLOWEST_BYTES_S", 10**9)
    world = make_world(dicom_export_retries=1, dicom_export_timeout_s=1)
    with dripping(first) as port, stow_peer() as peer, world.exporting():
        world.stow("SLOW", f"http://127.0.0.1:{port}")
        world.stow("WEB", peer.url)
        (slow,) = world.register("SLOW", *world.images(1), agent=AGENT)
        (other,) = world.register("WEB", *world.images(1), agent=AGENT)
        assert world.ended(other).state is DeliveryState.SUCCEEDED  # meanwhile
        ended = world.ended(slow)
    assert (ended.state, ended.retries) == (DeliveryState.FAILED, 1)
    assert "did not take and answer a request within 2 s" in ended.message


@WHAT
def test_fetching_from_it_ends(first: bytes) -> None:
    with dripping(first) as port:
        resource = Resource("fhir", Connection(uri=f"http://127.0.0.1:{port}"))
        with inference_fetch._client(resource, 1) as client, pytest.raises(InputError, match="the time is over"):
            inference_fetch._small(client, "/Patient/1", {}, "application/fhir+json", 10**6)
