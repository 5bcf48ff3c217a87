"""The gate never grants more than there is, never forgets, and lets nobody starve."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_flow.errors import ResourcesNeverFit
from clara_flow.infra.capacity import Capacity, CapacityGate
from clara_flow.infra.launchers.spec import ResourceRequest

MACHINE = Capacity(cpu=4, memory_mib=8192, gpus=("GPU-a", "GPU-b"))
requests = st.builds(ResourceRequest, cpu=st.integers(0, 4), memory_mib=st.integers(0, 8192), gpu=st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(wanted=st.lists(requests, max_size=12), cancelled=st.sets(st.integers(0, 11)))
def test_never_more_than_there_is_and_everyone_gets_a_turn(wanted: list[ResourceRequest], cancelled: set[int]) -> None:
    async def scenario() -> tuple[int, CapacityGate]:
        gate = CapacityGate(MACHINE)
        held: list[tuple[ResourceRequest, tuple[str, ...]]] = []
        served = 0

        async def holder(request: ResourceRequest) -> None:
            nonlocal served
            grant = await gate.acquire("op", request)
            held.append((request, grant.gpus))
            assert sum(r.cpu for r, _ in held) <= MACHINE.cpu
            assert sum(r.memory_mib for r, _ in held) <= MACHINE.memory_mib
            devices = [gpu for _, gpus in held for gpu in gpus]
            assert len(devices) == len(set(devices)) <= len(MACHINE.gpus)
            assert len(grant.gpus) == request.gpu
            try:
                await asyncio.tasks.__sleep0()
            finally:
                held.remove((request, grant.gpus))
                gate.release(grant)
            served += 1

        tasks = [asyncio.create_task(holder(request)) for request in wanted]
        await asyncio.tasks.__sleep0()
        victims = [task for index, task in enumerate(tasks) if index in cancelled]
        for task in victims:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        for task in tasks:
            assert task.cancelled() or task.exception() is None
        return served + sum(task.cancelled() for task in tasks), gate

    done, gate = asyncio.run(scenario())
    assert done == len(wanted)
    assert (gate._cpu, gate._memory_mib, sorted(gate._gpus)) == (4, 8192, ["GPU-a", "GPU-b"])


async def test_a_waiting_head_is_not_passed_on_its_own_resource() -> None:
    gate = CapacityGate(MACHINE)
    order: list[str] = []
    reasons: list[str] = []
    release = asyncio.Event()

    async def hold(name: str, request: ResourceRequest, until: asyncio.Event | None = None) -> None:
        grant = await gate.acquire(name, request, on_wait=reasons.append)
        order.append(name)
        if until:
            await until.wait()
        gate.release(grant)

    first = asyncio.create_task(hold("first", ResourceRequest(cpu=3, memory_mib=1), release))
    await asyncio.wait_for(_until(lambda: order == ["first"]), 5)
    head = asyncio.create_task(hold("head", ResourceRequest(cpu=2, memory_mib=1)))
    small = asyncio.create_task(hold("small", ResourceRequest(cpu=1, memory_mib=1)))
    other = asyncio.create_task(hold("other", ResourceRequest(cpu=0, memory_mib=0, gpu=1)))
    await asyncio.wait_for(other, 5)
    assert order == ["first", "other"], "cpu is closed behind the head, the GPU is not"
    assert reasons[0] == "waits for cpu"
    release.set()
    await asyncio.wait_for(asyncio.gather(first, head, small), 5)
    assert order == ["first", "other", "head", "small"]


async def _until(predicate) -> None:  # type: ignore[no-untyped-def]
    while not predicate():
        await asyncio.tasks.__sleep0()


async def test_what_never_fits_is_refused_with_the_missing_amounts() -> None:
    gate = CapacityGate(Capacity(cpu=1, memory_mib=100))
    with pytest.raises(ResourcesNeverFit) as refused:
        await gate.acquire("brain", ResourceRequest(cpu=3, memory_mib=356, gpu=1))
    assert refused.value.missing == {"cpu": 2, "memory_mib": 256, "gpu": 1}
    assert "lacks 2 cpu, 1 gpu, 256 memory_mib" in str(refused.value)


def test_this_machine_has_something() -> None:
    machine = Capacity.of_this_machine()
    assert machine.cpu >= 1
    assert machine.memory_mib > 256
