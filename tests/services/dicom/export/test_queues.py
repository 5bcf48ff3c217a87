"""Many destinations at once: one that does not do its part delays no other; nothing is lost when the exporter goes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from dcmtk import Storescp
from platform_fixture import free_port
from pydicom import dcmread
from pynetdicom import evt
from services.dicom.export.export_world import MakeWorld, World
from services.dicom.export.peers import scp, silent
from waiting import eventually

from clara_flow.records import deliveries, dicom_config
from clara_flow.records.dicom_models import DeliveryState, ItemState
from clara_flow.services.dicom.export import destination_queue
from clara_flow.services.dicom.export.destination_queue import DeliverySlots
from clara_flow.services.dicom.export.dimse import DimseSender
from clara_flow.services.dicom.heartbeats import destination_beat, read_all
from clara_flow.services.dicom.places import Places

SUCCEEDED, FAILED, PENDING = DeliveryState.SUCCEEDED, DeliveryState.FAILED, DeliveryState.PENDING


def test_destinations_that_hang_or_refuse_or_are_unknown_delay_no_other(
    make_world: MakeWorld, storescp: Callable[..., Storescp]
) -> None:
    world = make_world(dicom_export_timeout_s=60, dicom_scu_maximum_associations=3)
    refusing, good = storescp("--refuse"), storescp("+B")
    with silent() as hanging, world.exporting():
        world.destination("HANGS", hanging, concurrency=8)
        world.destination("REFUSES", refusing.port)
        world.destination("GONE", free_port())
        world.destination("GOOD", good.port)
        stuck = [world.register(["HANGS", "REFUSES", "GONE", "UNKNOWN"], *world.images(1))[0] for _ in range(6)]
        eventually(lambda: world.look(stuck[0]).state is DeliveryState.IN_PROGRESS)
        for _ in range(5):
            (delivery,) = world.register("GOOD", *world.images(2))
            assert world.ended(delivery).state is SUCCEEDED
        # The one that hangs has the whole 60 s for its answer: it is still at it.
        assert world.look(stuck[0]).state is DeliveryState.IN_PROGRESS
    assert world.look(stuck[0]).state is PENDING, "given back at the end"
    assert world.look(stuck[0]).retries == 0


def test_an_open_breaker_waits_without_using_up_retries_and_probes(world: World) -> None:
    port = free_port()
    world.destination("PACS", port, concurrency=1)
    (first,) = world.register("PACS", *world.images(1))
    with world.exporting() as exporter:
        assert world.ended(first).state is FAILED  # its retries are used up
        (second,) = world.register("PACS", *world.images(1))
        eventually(lambda: str(exporter._queues["pacs"].breaker.state) == "open")
        late = world.register("PACS", *world.images(1))[0]
        with scp(port=port) as peer:
            assert world.ended(late).state is SUCCEEDED
            assert world.ended(second).state is SUCCEEDED
            assert world.look(late).retries == 0
            assert peer.echoes >= 1
        assert str(exporter._queues["pacs"].breaker.state) == "closed"


def test_a_destination_that_is_mended_is_tried_at_once(make_world: MakeWorld) -> None:
    """However long its deliveries were to wait; and one that was paused, when it is resumed."""
    world = make_world(dicom_export_retry_delay_s=600)
    world.destination("Pacs", free_port())
    with scp() as peer, world.exporting():
        (delivery,) = world.register("PACS", *world.images(1))
        eventually(lambda: world.look(delivery).not_before is not None)
        assert (world.look(delivery).state, world.look(delivery).retries) == (PENDING, 1)
        dicom_config.update_destination(world.engine, "PACS", port=peer.port)
        assert world.ended(delivery).state is SUCCEEDED


def test_a_destination_that_is_mended_while_it_is_tried_is_tried_again_at_once(make_world: MakeWorld) -> None:
    world = make_world(dicom_export_retry_delay_s=600, dicom_export_timeout_s=2)
    with silent() as hanging, scp() as peer, world.exporting():
        world.destination("PACS", hanging)
        (delivery,) = world.register("PACS", *world.images(1))
        eventually(lambda: world.look(delivery).state is DeliveryState.IN_PROGRESS)
        dicom_config.update_destination(world.engine, "PACS", port=peer.port)
        assert world.ended(delivery).state is SUCCEEDED


def test_concurrency_is_each_destinations_own(make_world: MakeWorld) -> None:
    world, busy, most, lock = make_world(), [0], [0], threading.Lock()
    go_on = threading.Event()

    def answer(event: evt.Event, number: int) -> int:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        go_on.wait(10)
        with lock:
            busy[0] -= 1
        return 0

    with scp(answer) as peer, world.exporting():
        world.destination("PACS", peer.port, concurrency=3)
        tasks = [world.register("PACS", *world.images(1))[0] for _ in range(7)]
        eventually(lambda: busy[0] == 3)
        go_on.set()
        assert all(world.ended(task).state is SUCCEEDED for task in tasks)
    assert most[0] == 3


def test_a_lost_lease_stops_the_work(world: World) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def answer(event: evt.Event, number: int) -> int:
        arrived.set()
        go_on.wait(20)
        return 0

    with scp(answer) as peer, world.exporting(lease_s=0.6):
        world.destination("PACS", peer.port, concurrency=1)
        (delivery,) = world.register("PACS", *world.images(5))
        assert arrived.wait(10)
        deliveries.discard(world.engine, delivery.id, "not wanted any more")
        (after,) = world.register("PACS", *world.images(1))
        eventually(lambda: peer.associations == 2)  # the first one was cut off, the next delivery has begun
        go_on.set()
        assert world.ended(after).state is SUCCEEDED
    assert world.look(delivery).message == "not wanted any more"
    assert len(peer.received) == 2


def test_leases_are_renewed_while_a_delivery_takes_long(world: World) -> None:
    def answer(event: evt.Event, number: int) -> int:
        threading.Event().wait(0.5)
        return 0

    with scp(answer) as peer, world.exporting(lease_s=0.6):
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *world.images(5))
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (SUCCEEDED, 0)
    assert len(peer.received) == 5


def test_what_is_under_way_at_the_end_is_finished_or_given_back(world: World) -> None:
    arrived = threading.Event()

    def answer(event: evt.Event, number: int) -> int:
        arrived.set()
        threading.Event().wait(0.3)
        return 0

    with scp(answer) as peer:
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *world.images(3))
        with world.exporting():
            assert arrived.wait(10)
        assert world.look(delivery).state is SUCCEEDED
    assert len(peer.received) == 3


PROGRAM = """
import sys, threading
from pathlib import Path
from clara_flow.deployments.trigger import House
from clara_flow.infra.images.catalog import Catalog
from clara_flow.records.database import connect
from clara_flow.services.dicom.export.exporter import Exporter
from clara_flow.settings import load_settings
settings = load_settings(data_dir=Path(sys.argv[1]), dicom_export_retry_delay_s=0.05, poll_s=0.5)
house = House(settings=settings, engine=connect(sys.argv[2]), catalog=Catalog({}, {}))
Exporter(house, lease_s=600).run(threading.Event())
"""


def test_kills_at_any_moment_lose_nothing(world: World, database_url: str) -> None:
    """The leases are long: the next exporter sees that the process that had them is gone."""
    files = world.images(40)
    with scp(lambda event, number: 0) as peer:
        world.destination("PACS", peer.port)
        tasks = [world.register("PACS", *files[start : start + 10])[0] for start in range(0, 40, 10)]
        for goal in (3, 11, 25, 40):
            process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(world.settings.data_dir), database_url])
            try:
                eventually(lambda goal=goal: len({uid for uid, _ in peer.received}) >= goal, within_s=60)
                if goal == 40:
                    assert all(world.ended(task).state is SUCCEEDED for task in tasks)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
    uids = [uid for uid, _ in peer.received]
    assert set(uids) == {str(dcmread(file).SOPInstanceUID) for file in files}
    for task in tasks:
        assert {item.state for item in world.items(task)} == {ItemState.SENT}


def test_a_destination_that_is_deleted_fails_what_waits_for_it(world: World) -> None:
    world.destination("PACS", free_port(), paused=True)
    (delivery,) = world.register("PACS", *world.images(1))
    with world.exporting() as exporter:
        eventually(lambda: "pacs" in exporter._queues)
        with world.engine.begin() as connection:  # whether a delete is refused is the configuration's affair
            connection.execute(sa.text("DELETE FROM dicom_destinations"))
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert "there is no destination" in ended.message


def test_signs_of_life(world: World) -> None:
    port = free_port()
    world.destination("PA CS/1", port)
    (delivery,) = world.register("PA CS/1", *world.images(1))
    with world.exporting():
        world.ended(delivery)
        names = lambda: {beat.name: beat for beat in read_all(Places.of(world.settings).heartbeats)}  # noqa: E731
        eventually(lambda: {"exporter", destination_beat("PA CS/1")} <= names().keys())
        eventually(lambda: names()[destination_beat("PA CS/1")].facts["last_error"] == "unreachable")
        facts = names()[destination_beat("PA CS/1")].facts
        assert facts.keys() == {"breaker", "pending", "in_progress", "oldest_s", "reports_owed", "last_error"}
        dicom_config.delete_destination(world.engine, "PA CS/1")
        eventually(lambda: destination_beat("PA CS/1") not in names())
        assert names()["exporter"].facts.keys() == {
            "pending", "due", "in_progress", "destinations", "reports_owed", "reports_without_destination",
        }  # fmt: skip


def test_the_exporter_outlives_the_loss_of_its_connections(world: World) -> None:
    with scp() as peer, world.exporting():
        world.destination("PACS", peer.port)
        assert world.ended(world.register("PACS", *world.images(1))[0]).state is SUCCEEDED
        with world.engine.connect() as connection:
            connection.execute(
                sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()")
            )  # fmt: skip
        assert world.ended(world.register("PACS", *world.images(1))[0]).state is SUCCEEDED


def test_every_destination_has_a_slot_that_no_other_can_take() -> None:
    slots = DeliverySlots(3)
    slots.know(["A", "B"])
    never: Callable[[], bool] = lambda: False  # noqa: E731
    at_once = time.monotonic() + 0.05
    assert slots.acquire("A", never)
    assert slots.acquire("A", never)
    assert not slots.acquire("A", lambda: time.monotonic() > at_once), "the third is B's"
    assert slots.acquire("B", never)
    slots.release("A")
    assert slots.acquire("B", never)


@pytest.mark.parametrize("count", [1, 5])
def test_slots_are_given_to_all_however_many_there_are(count: int) -> None:
    slots = DeliverySlots(2)
    names = [str(number) for number in range(count)]
    slots.know(names)
    assert all(slots.acquire(name, lambda: False) for name in names)


def test_a_trial_that_breaks_is_followed_by_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the breaker would wait for the end of a trial that nobody makes any more."""
    probe, broken = DimseSender.probe, [True, True]

    def breaks_twice(self: DimseSender) -> None:
        if broken:
            broken.pop()
            raise RuntimeError("a fault of ours")
        probe(self)

    monkeypatch.setattr(DimseSender, "probe", breaks_twice)
    monkeypatch.setattr(destination_queue, "AFTER_TROUBLE_S", 0.05)
    port = free_port()
    world.destination("PACS", port, concurrency=2)
    (first,) = world.register("PACS", *world.images(1))
    with world.exporting() as exporter:
        assert world.ended(first).state is FAILED
        (second,) = world.register("PACS", *world.images(1))
        eventually(lambda: str(exporter._queues["pacs"].breaker.state) == "open")
        with scp(port=port):
            assert world.ended(second).state is SUCCEEDED
    assert not broken
