"""What a machine announces, and how the ledger counts it: over random machines and topologies."""

from __future__ import annotations

import json
from dataclasses import replace

import pynvml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nvml_fixture import FakeNvml

from clara_flow.infra.gpu import nvml
from clara_flow.infra.gpu.inventory import list_gpus
from clara_flow.infra.gpu.model import Gpu, Health
from clara_flow.infra.gpu.node import NodeInventory, read_node, to_ledger_node
from clara_flow.infra.ledger.model import Node

SIZES = st.integers(0, 200_000)
TEXTS = st.text(max_size=12)


def unknown(values: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.none() | values


@st.composite
def gpus(draw: st.DrawFn) -> tuple[Gpu, ...]:
    """Cards and instances with facts in any combination, also such as no driver tells."""
    uuids = [f"GPU-{number}" for number in range(draw(st.integers(0, 6)))]
    return tuple(
        Gpu(
            uuid=uuid,
            index=draw(st.integers(0, 15)),
            name=draw(TEXTS),
            memory_mib=draw(SIZES),
            reserved_mib=draw(st.integers(0, 2_000)),
            used_mib=draw(unknown(SIZES)),
            foreign_mib=draw(SIZES),
            pci=draw(TEXTS),
            numa=draw(unknown(st.integers(0, 7))),
            links=tuple(draw(st.lists(st.sampled_from([*uuids, "GPU-elsewhere"]), unique=True))),
            card=draw(st.none() | st.sampled_from(["GPU-card", *uuids])),
            mig=draw(st.booleans()),
            temperature_c=draw(unknown(st.integers(0, 120))),
            slowdowns=tuple(draw(st.lists(TEXTS, max_size=2))),
            uncorrected=draw(unknown(st.integers(0, 9))),
            uncorrected_ever=draw(unknown(st.integers(0, 9))),
            repair_pending=draw(st.none() | st.booleans()),
            repair_failed=draw(st.none() | st.booleans()),
            health=draw(st.sampled_from(Health)),
            reason=draw(TEXTS),
        )
        for uuid in uuids
    )


@st.composite
def inventories(draw: st.DrawFn) -> NodeInventory:
    return NodeInventory(
        hostname=draw(TEXTS),
        cpu=draw(st.integers(1, 512)),
        memory_mib=draw(SIZES),
        shm_mib=draw(SIZES),
        shm_free_mib=draw(SIZES),
        fastio_limit_mib=draw(unknown(SIZES)),
        gpus=draw(gpus()),
    )


@given(inventories())
def test_it_survives_json(inventory: NodeInventory) -> None:
    assert NodeInventory.from_json(json.loads(json.dumps(inventory.to_json()))) == inventory


@given(inventories(), st.sets(st.sampled_from(["GPU-0", "GPU-1", "GPU-card"])), st.booleans())
def test_the_ledger_counts_what_can_be_leased(inventory: NodeInventory, drained: set[str], usable: bool) -> None:
    node = to_ledger_node(inventory, name="gpu-1", jobs=4, drained_devices=drained, usable=usable)
    assert (node.name, node.jobs, node.usable) == ("gpu-1", 4, usable)
    assert (node.cpu, node.memory_mib) == (inventory.cpu, inventory.memory_mib)
    assert 0 <= node.fastio_mib <= inventory.shm_mib
    by_uuid = {gpu.uuid: gpu for gpu in inventory.gpus}
    assert [device.uuid for device in node.devices] == [gpu.uuid for gpu in inventory.gpus if not gpu.mig]
    for device in node.devices:
        gpu = by_uuid[device.uuid]
        assert 0 <= device.memory_mib <= gpu.memory_mib
        assert device.links <= {other.uuid for other in node.devices}
        if device.usable:
            assert gpu.health is not Health.FAILED
            assert not {gpu.uuid, gpu.card} & drained


def test_half_of_shared_memory_is_for_fastio_unless_told(fake_nvml_here: FakeNvml) -> None:
    uuid = fake_nvml_here.add_gpu()
    inventory = read_node()
    assert [gpu.uuid for gpu in inventory.gpus] == [uuid]
    assert inventory.fastio_mib == inventory.shm_mib // 2
    assert read_node((), fastio_limit_mib=0).fastio_mib == 0
    assert replace(inventory, fastio_limit_mib=inventory.shm_mib + 1).fastio_mib == inventory.shm_mib
    assert read_node(()).gpus == ()
    assert json.dumps(inventory.to_json())


@st.composite
def topologies(draw: st.DrawFn) -> tuple[list[list[str]], list[int], list[int], list[int]]:
    """Of each card: where its links end (a card's number, "switch", "down"), MIG instances, an error, foreign MiB."""
    count = draw(st.integers(0, 6))
    ends = st.sampled_from(["switch", "down", *map(str, range(count))])
    return (
        [draw(st.lists(ends, max_size=6)) for _ in range(count)],
        [draw(st.sampled_from([0, 0, 0, 1, 3])) for _ in range(count)],
        [draw(st.sampled_from([0, 0, 0, pynvml.NVML_ERROR_GPU_IS_LOST, 999])) for _ in range(count)],
        [draw(st.integers(0, 16_000)) for _ in range(count)],
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(topology=topologies())
def test_any_topology_is_read_whole(fake_nvml_here: FakeNvml, topology: tuple[list[list[str]], ...]) -> None:
    fake = FakeNvml(fake_nvml_here.library, fake_nvml_here.file)  # an empty one each time
    links, instances, errors, foreign = topology
    with fake.at_once():
        cards = [fake.add_gpu(f"GPU-{number}") for number in range(len(links))]
        for card, held in zip(cards, foreign, strict=True):
            fake.hold(card, {4_000_000: held})  # beyond the largest process id
        for card, ends in zip(cards, links, strict=True):
            fake.link(card, *(end if end in {"switch", "down"} else cards[int(end)] for end in ends))
        made = [fake.add_instance(card, instance=k) for card, n in zip(cards, instances, strict=True) for k in range(n)]
    memory = nvml.Memory()
    with nvml.opened():
        nvml.read_gpus(memory)
        with fake.at_once():
            for card, code in zip(cards, errors, strict=True):
                if code:
                    fake.fail(card, code)
        found = nvml.read_gpus(memory)
    assert {gpu.uuid for gpu in found} == {*cards, *made}
    assert [gpu.uuid for gpu in found if gpu.card is None] == cards
    by_uuid = {gpu.uuid: gpu for gpu in found}
    for gpu in found:
        assert gpu.uuid not in gpu.links
        assert all(gpu.uuid in by_uuid[other].links for other in gpu.links)
        code = errors[cards.index(gpu.card or gpu.uuid)]
        assert gpu.health is (Health.FAILED if code else Health.OK)
        assert not gpu.links or not code
        if gpu.card is None:
            assert gpu.foreign_mib == foreign[gpu.index]
    inventory = read_node(found)
    assert NodeInventory.from_json(json.loads(json.dumps(inventory.to_json()))) == inventory
    node = to_ledger_node(inventory, name="n", jobs=1)
    assert isinstance(node, Node)
    assert all(device.uuid in by_uuid for device in node.devices)
    assert sum(device.usable for device in node.devices) == sum(gpu.is_usable for gpu in found)


def test_a_drained_card_drains_its_instances(fake_nvml_here: FakeNvml) -> None:
    card = fake_nvml_here.add_gpu()
    first, second = (fake_nvml_here.add_instance(card, instance=number) for number in (1, 2))
    inventory = read_node(list_gpus())

    def usable(*drained: str) -> list[str]:
        node = to_ledger_node(inventory, name="n", jobs=1, drained_devices=drained)
        return [device.uuid for device in node.devices if device.usable]

    assert usable() == [first, second]
    assert usable(first) == [second]
    assert usable(card) == []


def test_what_a_newer_worker_tells_beyond_ours_is_passed_over(fake_nvml_here: FakeNvml) -> None:
    fake_nvml_here.add_gpu()
    inventory = read_node()
    facts = inventory.to_json()
    newer = facts | {"colour": "blue", "gpus": [gpu | {"fans": 2} for gpu in facts["gpus"]]}
    assert NodeInventory.from_json(newer) == inventory
