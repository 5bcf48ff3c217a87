"""GPUs as the real pynvml reads them, from a stand-in for the driver's library that breaks on demand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pynvml
import pytest
from nvml_fixture import FakeNvml

from clara_flow.infra.gpu import health, nvml
from clara_flow.infra.gpu.inventory import list_gpus
from clara_flow.infra.gpu.model import Gpu, Health

BARE_CARD = Gpu(uuid="GPU-bare", index=0, name="unknown GPU", memory_mib=16_000, used_mib=0)


def read(memory: nvml.Memory | None = None, is_ours: Callable[[int], bool] = nvml.is_operator) -> tuple[Gpu, ...]:
    with nvml.opened() as there:
        assert there
        return nvml.read_gpus(memory or nvml.Memory(), is_ours)


def test_all_facts_of_a_healthy_card(fake_nvml_here: FakeNvml) -> None:
    uuid = fake_nvml_here.add_gpu(name="NVIDIA H200", memory_mib=143_771, pci="0 0x3b 0", ecc="0 7", temperature="34")
    assert list_gpus() == (
        Gpu(
            uuid=uuid,
            index=0,
            name="NVIDIA H200",
            memory_mib=143_771,
            reserved_mib=400,
            used_mib=0,
            pci="0000:3b:00.0",
            numa=0,
            temperature_c=34,
            uncorrected=0,
            uncorrected_ever=7,
            repair_pending=False,
            repair_failed=False,
        ),
    )


def test_what_the_driver_does_not_support_is_unknown(fake_nvml_here: FakeNvml) -> None:
    fake_nvml_here.add_bare_gpu("GPU-bare")
    assert list_gpus() == (BARE_CARD,)
    fake_nvml_here.set("GPU-bare", memory="16000 900")
    assert list_gpus() == (replace(BARE_CARD, used_mib=900, foreign_mib=900),)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH])
def test_without_a_working_driver_there_are_no_gpus(fake_nvml_here: FakeNvml, code: int) -> None:
    fake_nvml_here.add_gpu()
    fake_nvml_here.driver(code)
    assert list_gpus() == ()


def test_without_the_library_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: no such file")))
    assert list_gpus() == ()


def test_another_process_sees_the_stand_in_through_the_library_path(fake_nvml: FakeNvml) -> None:
    uuid = fake_nvml.add_gpu()
    program = "from clara_flow.infra.gpu.inventory import list_gpus; print(*(gpu.uuid for gpu in list_gpus()))"
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | fake_nvml.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == [uuid]


FAULTS: dict[str, tuple[dict[str, str | list[str]], Health, str]] = {
    "lost": ({"error": ["* 15"]}, Health.FAILED, "it is lost"),
    "needs a reset": ({"error": ["* 16"]}, Health.FAILED, "waits for a reset"),
    "no power": ({"error": ["nvmlDeviceGetHandleByIndex_v2 8"]}, Health.FAILED, "power cables"),
    "no interrupts": ({"error": ["nvmlDeviceGetHandleByIndex_v2 11"]}, Health.FAILED, "interrupts"),
    "unknown": ({"error": ["* 999"]}, Health.FAILED, "the driver cannot read it"),
    "lost while it is read": ({"error": ["nvmlDeviceGetTemperature 15"]}, Health.FAILED, "it is lost"),
    "lost to its links": ({"error": ["nvmlDeviceGetNvLinkState 15"]}, Health.FAILED, "it is lost"),
    "uncorrected memory errors": ({"ecc": "3 3"}, Health.FAILED, "3 uncorrected memory errors"),
    "uncorrected memory errors of the past": ({"ecc": "0 3"}, Health.OK, ""),
    "repair waits": ({"rows": "1 0"}, Health.FAILED, "waits for a reset"),
    "repair failed": ({"rows": "0 1"}, Health.FAILED, "no spare row"),
    "too hot": ({"clocks": "0x40", "temperature": "93"}, Health.DEGRADED, "too hot"),
    "power brake": ({"clocks": "0x88"}, Health.DEGRADED, "hardware slowdown, power brake"),
    "power cap": ({"clocks": "0x4"}, Health.OK, ""),
    "hot and broken": ({"clocks": "0x40", "ecc": "1 1"}, Health.FAILED, "1 uncorrected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fake_nvml_here: FakeNvml, fault: str) -> None:
    facts, expected, reason = FAULTS[fault]
    first, second = fake_nvml_here.add_gpu(), fake_nvml_here.add_gpu()
    memory = nvml.Memory()
    assert [gpu.health for gpu in read(memory)] == [Health.OK, Health.OK]

    fake_nvml_here.set(first, **facts)
    broken, other = read(memory)
    assert (broken.uuid, broken.health) == (first, expected)
    assert reason in broken.reason
    assert bool(broken.reason) is bool(reason)
    assert broken.is_usable is (expected is not Health.FAILED)
    assert (other.uuid, other.health) == (second, Health.OK)

    fake_nvml_here.set(first, error=None, ecc="0 0", rows="0 0", clocks="0")
    assert [gpu.health for gpu in read(memory)] == [Health.OK, Health.OK]


def test_pages_are_asked_for_where_rows_are_not_remapped(fake_nvml_here: FakeNvml) -> None:
    uuid = fake_nvml_here.add_gpu()
    fake_nvml_here.set(uuid, rows=None, pages="1")
    (gpu,) = list_gpus()
    assert (gpu.health, gpu.repair_pending, gpu.repair_failed) == (Health.FAILED, True, None)


def test_a_card_that_was_lost_before_anybody_knew_it_is_listed_by_its_place(fake_nvml_here: FakeNvml) -> None:
    fake_nvml_here.lose(fake_nvml_here.add_gpu())
    (gpu,) = list_gpus()
    assert (gpu.uuid, gpu.health, gpu.memory_mib) == ("GPU-unknown-0", Health.FAILED, 0)


def test_a_card_that_another_container_has_is_not_ours_to_list(fake_nvml_here: FakeNvml) -> None:
    theirs, ours = fake_nvml_here.add_gpu(), fake_nvml_here.add_gpu()
    fake_nvml_here.fail(theirs, pynvml.NVML_ERROR_NO_PERMISSION, "nvmlDeviceGetHandleByIndex_v2")
    assert [(gpu.uuid, gpu.index) for gpu in list_gpus()] == [(ours, 1)]


def test_a_card_that_is_taken_away_is_forgotten_with_its_faults(fake_nvml_here: FakeNvml) -> None:
    uuid = fake_nvml_here.add_gpu()
    memory = nvml.Memory()
    memory.note(nvml.Fault((uuid, None), health.of_xid(79)))
    assert [gpu.health for gpu in read(memory)] == [Health.FAILED]
    fake_nvml_here.remove(uuid)
    assert read(memory) == ()
    fake_nvml_here.add_gpu(uuid)
    assert [gpu.health for gpu in read(memory)] == [Health.OK]


XIDS = [
    *((number, Health.OK) for number in (8, 13, 31, 32, 43, 45, 68, 69, 109)),
    *((number, Health.FAILED) for number in (48, 63, 64, 74, 79, 92, 94, 95, 119, 120, 140, 143)),
    *((number, Health.DEGRADED) for number in (0, 42, 54, 73, 154, 9999)),
]


@pytest.mark.parametrize(("number", "expected"), XIDS)
def test_xids(number: int, expected: Health) -> None:
    verdict, reason = health.of_xid(number)
    assert verdict is expected
    assert (f"Xid {number}" in reason) is (expected is not Health.OK)
    assert not health.OF_APPLICATIONS & health.OF_THE_GPU.keys()


def test_foreign_memory(fake_nvml_here: FakeNvml) -> None:
    uuid = fake_nvml_here.add_gpu()
    fake_nvml_here.hold(uuid, {101: 6_000, 102: 1_500, 103: 500})

    def foreign_mib() -> int:
        (gpu,) = read(is_ours=lambda pid: pid == 101)
        return gpu.foreign_mib

    assert foreign_mib() == 2_000
    fake_nvml_here.set(uuid, graphics=["102 1500", "104 300"])  # 102 computes and draws: one and the same memory
    assert foreign_mib() == 2_300
    fake_nvml_here.set(uuid, graphics="none")
    fake_nvml_here.hold(uuid, {101: -1, 102: 700})  # of ours nobody asks how much
    assert foreign_mib() == 700
    fake_nvml_here.hold(uuid, {102: -1, 103: 500})  # not told: all that is used
    assert foreign_mib() == 500
    fake_nvml_here.set(uuid, process=None)
    assert foreign_mib() == 500
    fake_nvml_here.set(uuid, process="none", graphics=None)
    assert foreign_mib() == 0


def test_an_operator_is_known_by_its_environment() -> None:
    def ask(environment: dict[str, str]) -> bool:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            process.stdout.read(1)  # it runs under its own name and environment now
            answer = nvml.is_operator(process.pid)
            process.stdin.close()
            process.wait()
            assert nvml.is_operator(process.pid) is False
        return answer

    assert ask({"CLARA_IO_MANIFEST": "/manifest.json"})
    assert not ask({"MY_CLARA_IO_MANIFEST": "/manifest.json"})


def test_mig_instances_are_devices_and_their_card_takes_no_work(fake_nvml_here: FakeNvml) -> None:
    card, whole = fake_nvml_here.add_gpu(numa="1"), fake_nvml_here.add_gpu()
    first = fake_nvml_here.add_instance(card, instance=3, memory_mib=9_856)
    second = fake_nvml_here.add_instance(card, instance=5)
    fake_nvml_here.hold(second, {777: 600}, memory_mib=4_864)
    memory = nvml.Memory()
    gpus = read(memory)
    assert [(gpu.uuid, gpu.card, gpu.mig, gpu.is_usable, gpu.index) for gpu in gpus] == [
        (card, None, True, False, 0),
        (first, card, False, True, 0),
        (second, card, False, True, 0),
        (whole, None, False, True, 1),
    ]
    assert [(gpu.memory_mib, gpu.foreign_mib, gpu.numa) for gpu in gpus[1:3]] == [(9_856, 0, 1), (4_864, 600, 1)]

    memory.note(nvml.Fault((card, 5), health.of_xid(94)))
    assert [gpu.health for gpu in read(memory)] == [Health.OK, Health.OK, Health.FAILED, Health.OK]
    memory.note(nvml.Fault((card, None), health.of_xid(119)))
    assert [gpu.health for gpu in read(memory)] == [*[Health.FAILED] * 3, Health.OK]
    fake_nvml_here.lose(card)
    assert [(gpu.uuid, gpu.health) for gpu in read(memory)][:3] == [(u, Health.FAILED) for u in (card, first, second)]


def links(fake: FakeNvml, *uuids: str) -> list[set[int]]:
    by_uuid = {gpu.uuid: gpu for gpu in list_gpus()}
    return [{uuids.index(other) for other in by_uuid[uuid].links} for uuid in uuids]


def test_nvlink_neighbours(fake_nvml_here: FakeNvml) -> None:
    fake = fake_nvml_here
    a, b, c, d = (fake.add_gpu() for _ in range(4))
    assert links(fake, a, b, c, d) == [set(), set(), set(), set()]
    fake.link(a, b, b, "down")
    fake.link(b, a, a, "down")
    fake.link(c, "down", d)  # only one side tells
    assert links(fake, a, b, c, d) == [{1}, {0}, {3}, {2}]
    fake.lose(b)
    assert links(fake, a, c, d) == [set(), {2}, {1}]  # a's wires end at nobody


def test_a_switch_joins_all_who_reach_it(fake_nvml_here: FakeNvml) -> None:
    fake = fake_nvml_here
    a, b, c, d = (fake.add_gpu() for _ in range(4))
    for uuid in (a, b, c):
        fake.link(uuid, "switch", "switch")
    fake.link(d, "down")
    assert links(fake, a, b, c, d) == [{1, 2}, {0, 2}, {0, 1}, set()]


def test_links_of_a_driver_that_tells_no_kinds_are_wires_to_gpus(fake_nvml_here: FakeNvml) -> None:
    fake = fake_nvml_here
    a, b = fake.add_gpu(), fake.add_gpu()
    fake.link(a, b)
    fake.fail(a, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, "nvmlDeviceGetNvLinkRemoteDeviceType")
    assert links(fake, a, b) == [{1}, {0}]
