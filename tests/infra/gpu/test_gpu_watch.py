"""The watch over the GPUs: told of what matters to scheduling, at once where the driver reports it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pynvml
import pytest
from nvml_fixture import FakeNvml
from waiting import eventually

from clara_flow.infra.gpu.inventory import GpuWatch
from clara_flow.infra.gpu.model import Health

NEVER_S = 3600.0  # only what the driver reports is noticed
OFTEN_S = 0.02


class Listener:
    """Counts the calls; `fails` makes them raise."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False
        self.called = threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.called.set()
        if self.fails:
            raise RuntimeError("the database is away")


Watching = Callable[..., tuple[GpuWatch, Listener]]


@pytest.fixture
def watching() -> Iterator[Watching]:
    """Makes watches that run, and stops them in the end."""
    made: list[GpuWatch] = []

    def make(**options: object) -> tuple[GpuWatch, Listener]:
        listener = Listener()
        watch = GpuWatch(listener, **options)  # type: ignore[arg-type]
        made.append(watch)
        watch.start()
        return watch, listener

    yield make
    for watch in made:
        watch.stop()


def healths(watch: GpuWatch) -> list[Health]:
    return [gpu.health for gpu in watch.gpus]


def readings(watch: GpuWatch) -> Callable[[int], None]:
    """Waits until the watch has read the GPUs so many times more."""

    def wait(count: int) -> None:
        for _ in range(count):
            seen = watch.gpus
            eventually(lambda: watch.gpus is not seen)  # noqa: B023  every reading is a new tuple

    return wait


def until_heard(listener: Listener, report: Callable[[], object]) -> None:
    """Report an event until it is told: the watch's thread may not have registered for events yet."""

    def heard() -> bool:
        report()
        return listener.called.wait(0.1)

    eventually(heard)


def test_the_first_reading_is_there_at_once_and_is_no_change(fake_nvml_here: FakeNvml, watching: Watching) -> None:
    fake_nvml_here.add_gpu()
    watch, listener = watching(poll_s=OFTEN_S)
    assert healths(watch) == [Health.OK]
    readings(watch)(3)
    assert listener.calls == 0


def test_a_xid_is_told_at_once_and_lasts(fake_nvml_here: FakeNvml, watching: Watching) -> None:
    uuid, _ = fake_nvml_here.add_gpu(), fake_nvml_here.add_gpu()
    watch, listener = watching(poll_s=NEVER_S)
    until_heard(listener, lambda: fake_nvml_here.xid(uuid, 79))
    assert healths(watch) == [Health.FAILED, Health.OK]
    assert "Xid 79" in watch.gpus[0].reason


def test_a_card_that_came_later_reports_too(fake_nvml_here: FakeNvml, watching: Watching) -> None:
    watch, listener = watching(poll_s=OFTEN_S)
    uuid = fake_nvml_here.add_gpu()
    eventually(lambda: healths(watch) == [Health.OK])

    def failed() -> bool:
        fake_nvml_here.xid(uuid, 119)
        return healths(watch) == [Health.FAILED]

    eventually(failed, every_s=0.1)
    eventually(lambda: listener.calls == 2)


def test_faults_of_applications_are_no_change(fake_nvml_here: FakeNvml, watching: Watching) -> None:
    uuid = fake_nvml_here.add_gpu()
    watch, listener = watching(poll_s=NEVER_S)

    def report() -> None:
        for number in (13, 31, 43, 45, 68):
            fake_nvml_here.xid(uuid, number)
        fake_nvml_here.double_bit_error(uuid)  # comes after them

    until_heard(listener, report)
    assert "Xid 48" in watch.gpus[0].reason
    assert "13" not in watch.gpus[0].reason
    assert listener.calls == 1


def test_a_xid_of_an_instance_fails_that_instance(fake_nvml_here: FakeNvml, watching: Watching) -> None:
    card = fake_nvml_here.add_gpu()
    first, _ = (fake_nvml_here.add_instance(card, instance=number) for number in (1, 2))
    watch, listener = watching(poll_s=NEVER_S)
    until_heard(listener, lambda: fake_nvml_here.xid(card, 94, instance=1))
    assert [(gpu.uuid, gpu.health) for gpu in watch.gpus if gpu.health is not Health.OK] == [(first, Health.FAILED)]


def test_what_appears_fails_heals_and_vanishes_is_told(fake_nvml_here: FakeNvml, watching: Watching) -> None:
    watch, listener = watching(poll_s=OFTEN_S)
    assert watch.gpus == ()
    steps: list[tuple[Callable[[], object], list[Health]]] = [
        (lambda: fake_nvml_here.add_gpu("GPU-a"), [Health.OK]),
        (lambda: fake_nvml_here.add_gpu("GPU-b"), [Health.OK, Health.OK]),
        (lambda: fake_nvml_here.lose("GPU-a"), [Health.FAILED, Health.OK]),
        (lambda: fake_nvml_here.heal("GPU-a"), [Health.OK, Health.OK]),
        (lambda: fake_nvml_here.set("GPU-b", ecc="1 1"), [Health.OK, Health.FAILED]),
        (lambda: fake_nvml_here.remove("GPU-b"), [Health.OK]),
        (lambda: fake_nvml_here.driver(pynvml.NVML_ERROR_UNINITIALIZED), []),
    ]
    for number, (change, expected) in enumerate(steps, start=1):
        change()
        eventually(lambda: listener.calls == number)  # noqa: B023
        assert healths(watch) == expected


def test_small_moves_of_foreign_memory_are_not_told_large_ones_are(
    fake_nvml_here: FakeNvml, watching: Watching
) -> None:
    uuid = fake_nvml_here.add_gpu()
    watch, listener = watching(poll_s=OFTEN_S, is_ours=lambda pid: pid == 1)
    for held_mib in (100, 256):
        fake_nvml_here.hold(uuid, {1: 9_000, 2: held_mib})
        eventually(lambda: watch.gpus[0].foreign_mib == held_mib)  # noqa: B023
        assert listener.calls == 0
    fake_nvml_here.hold(uuid, {1: 9_000, 2: 257})  # small steps add up
    eventually(lambda: listener.calls == 1)
    fake_nvml_here.set(uuid, temperature="80", clocks="0x40")  # slow, not wrong: it goes on being used
    eventually(lambda: healths(watch) == [Health.DEGRADED])
    assert listener.calls == 1
    fake_nvml_here.hold(uuid, {1: 9_000})
    eventually(lambda: listener.calls == 2)


def test_a_change_that_could_not_be_told_is_told_again(fake_nvml_here: FakeNvml, watching: Watching) -> None:
    watch, listener = watching(poll_s=OFTEN_S)
    listener.fails = True
    fake_nvml_here.add_gpu()
    eventually(lambda: listener.calls >= 3)
    listener.fails = False
    listener.called.clear()
    assert listener.called.wait(5)
    readings(watch)(1)
    told = listener.calls
    readings(watch)(3)
    assert listener.calls == told


def test_it_stops_at_once(fake_nvml_here: FakeNvml, watching: Watching) -> None:
    fake_nvml_here.add_gpu()
    watch, _ = watching(poll_s=NEVER_S)
    began = time.monotonic()
    watch.stop()
    assert time.monotonic() - began < 2
