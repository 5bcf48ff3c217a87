"""A destination that does not do its part, and one beside it: what is for the other one arrives meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from pynetdicom import evt
from services.dicom.export.export_world import MakeWorld, World
from services.dicom.export.peers import free_port, scp, silent
from services.dicom.export.stow_peer import stow_peer
from waiting import eventually

from clara_flow.records.dicom_models import DeliveryState
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.space import SpaceCheck

SUCCEEDED = DeliveryState.SUCCEEDED
Bad = Callable[[World], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def accepting(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where each connection is treated so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    answer(listener.accept()[0])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _reset(connection: socket.socket) -> None:
    connection.recv(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _babble(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(os.urandom(200))
    connection.close()


@contextlib.contextmanager
def never_answers(world: World) -> Iterator[None]:
    with silent() as port:
        world.destination("BAD", port, concurrency=4)
        yield


@contextlib.contextmanager
def cannot_be_connected_to(world: World) -> Iterator[None]:
    """Its queue of connections is full: SYN packets are not answered, as by a machine that is off."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        world.destination("BAD", listener.getsockname()[1], concurrency=4)
        yield


@contextlib.contextmanager
def answers_no_store(world: World) -> Iterator[None]:
    over = threading.Event()

    def answer(event: evt.Event, number: int) -> int:
        over.wait(60)
        return 0x0110

    with scp(answer) as peer:
        world.destination("BAD", peer.port, concurrency=4)
        yield
        over.set()


@contextlib.contextmanager
def refuses_each_instance(world: World) -> Iterator[None]:
    with scp(lambda event, number: 0xA700) as peer:
        world.destination("BAD", peer.port)
        yield


@contextlib.contextmanager
def resets(world: World) -> Iterator[None]:
    with accepting(_reset) as port:
        world.destination("BAD", port)
        yield


@contextlib.contextmanager
def talks_nonsense(world: World) -> Iterator[None]:
    with accepting(_babble) as port:
        world.destination("BAD", port)
        yield


@contextlib.contextmanager
def is_not_there(world: World) -> Iterator[None]:
    world.destination("BAD", free_port())
    yield


@contextlib.contextmanager
def web_that_never_answers(world: World) -> Iterator[None]:
    with silent() as port:
        world.stow("BAD", f"http://127.0.0.1:{port}", concurrency=4)
        yield


@contextlib.contextmanager
def web_that_is_busy(world: World) -> Iterator[None]:
    with stow_peer(lambda uids, number: (503, {})) as peer:
        world.stow("BAD", peer.url)
        yield


@pytest.mark.parametrize(
    "bad",
    [
        never_answers,
        cannot_be_connected_to,
        answers_no_store,
        refuses_each_instance,
        resets,
        talks_nonsense,
        is_not_there,
        web_that_never_answers,
        web_that_is_busy,
    ],
)
def test_results_arrive_beside_it(make_world: MakeWorld, bad: Bad) -> None:
    world = make_world(dicom_export_timeout_s=60, dicom_scu_maximum_associations=3, dicom_export_retries=100)
    with bad(world), scp() as pacs, stow_peer() as web, world.exporting():
        world.destination("PACS", pacs.port)
        world.stow("WEB", web.url)
        waits = [world.register("BAD", *world.images(1))[0] for _ in range(5)]
        for _ in range(3):
            both = world.register(["PACS", "WEB"], *world.images(2))
            assert [world.ended(delivery).state for delivery in both] == [SUCCEEDED] * 2
        assert SUCCEEDED not in {world.look(delivery).state for delivery in waits}
    assert len(pacs.received) == sum(map(len, web.requests)) == 6


def test_each_dicomweb_destination_gets_every_file(world: World) -> None:
    files = world.images(12)
    with stow_peer() as one, stow_peer() as two, stow_peer() as three, world.exporting():
        peers = {"ONE": one, "TWO": two, "THREE": three}
        for name, peer in peers.items():
            world.stow(name, peer.url)
        tasks = world.register(list(peers), *files, agent="DICOMweb")
        assert [world.ended(task).state for task in tasks] == [SUCCEEDED] * 3
    contents = {file.read_bytes() for file in files}
    for peer in peers.values():
        assert {content for request in peer.requests for _, content in request} == contents


def test_a_short_disk_stops_no_export(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clara's exporter stopped for good; what is sent needs no room. Nor do signs of life that cannot be written."""
    monkeypatch.setattr(SpaceCheck, "is_short", lambda self: True)
    heartbeats = Heartbeats(world.settings.data_dir / "dicom" / "heartbeats")
    heartbeats.folder.parent.mkdir(parents=True)
    heartbeats.folder.write_text("no folder: every write fails")
    with scp() as peer, world.exporting():
        world.destination("PACS", peer.port)
        for _ in range(2):
            (delivery,) = world.register("PACS", *world.images(1))
            assert world.ended(delivery).state is SUCCEEDED


@pytest.mark.parametrize("bad", [never_answers, answers_no_store, web_that_never_answers])
def test_what_hangs_is_cut_off_and_given_back_at_the_end(make_world: MakeWorld, bad: Bad) -> None:
    world = make_world(dicom_export_timeout_s=600)
    with bad(world):
        with world.exporting():
            (delivery,) = world.register("BAD", *world.images(1))
            eventually(lambda: world.look(delivery).state is DeliveryState.IN_PROGRESS)
        assert (world.look(delivery).state, world.look(delivery).retries) == (DeliveryState.PENDING, 0)
