"""The machines of the pool and what tenants may hold of it."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
import sqlalchemy as sa
from pool_records import NODE, OWNER, TTL_S, announce, heard, listening, silence

from clara_flow.errors import InputError
from clara_flow.records import nodes, quotas
from clara_flow.records.nodes import NodeRow

GPUS = {
    "cpu": 8,
    "gpus": [
        {"uuid": "GPU-11aa", "links": ["GPU-12bb"]},
        {"uuid": "GPU-12bb", "instances": [{"uuid": "MIG-11cc"}]},
    ],
}


def node(engine: sa.Engine, name: str = NODE) -> NodeRow:
    return next(row for row in nodes.list_nodes(engine) if row.name == name)


def test_a_node_is_what_its_worker_says(engine: sa.Engine, database_url: str) -> None:
    with listening(database_url, nodes.CHANNEL) as listener:
        session = announce(engine, **GPUS)
        assert heard(listener, 1) == [(nodes.CHANNEL, {"node": NODE})]
    row = node(engine)
    assert (row.session, row.owner_pid, row.owner_process_start) == (session, OWNER.pid, OWNER.process_start)
    assert (row.inventory, row.jobs, row.drained, row.drained_devices, row.is_heard_of) == (GPUS, 4, False, [], True)
    assert (row.expires - row.heartbeat).total_seconds() == TTL_S
    announce(engine, "node-0")
    assert [row.name for row in nodes.list_nodes(engine)] == ["node-0", NODE]


def test_the_newest_worker_of_a_name_counts(engine: sa.Engine) -> None:
    old = announce(engine, **GPUS)
    nodes.set_drained(engine, NODE, True)
    new = uuid.uuid4()
    nodes.announce(engine, NODE, new, replace(OWNER, pid=7, process_start="b:1"), {"cpu": 2}, jobs=1, ttl_s=5)
    row = node(engine)
    assert (row.session, row.owner_pid, row.inventory, row.jobs) == (new, 7, {"cpu": 2}, 1)
    assert row.drained  # a restart does not undo what people decided
    assert not nodes.heartbeat(engine, NODE, old, TTL_S)
    nodes.leave(engine, NODE, old)
    assert node(engine) == row


def test_a_node_lives_by_its_heartbeat(engine: sa.Engine, database_url: str) -> None:
    session = announce(engine)
    first = node(engine)
    silence(engine)
    assert not node(engine).is_heard_of
    assert nodes.heartbeat(engine, NODE, session, 2 * TTL_S)
    row = node(engine)
    assert row.is_heard_of
    assert row.heartbeat > first.heartbeat
    assert (row.expires - row.heartbeat).total_seconds() == 2 * TTL_S
    with listening(database_url, nodes.CHANNEL) as listener:
        nodes.leave(engine, NODE, session)
        assert heard(listener, 1) == [(nodes.CHANNEL, {"node": NODE})]
    assert not node(engine).is_heard_of
    assert not nodes.heartbeat(engine, "nobody", session, TTL_S)


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        (NODE, (NODE, "")),
        ("GPU-11aa", (NODE, "GPU-11aa")),
        ("gpu-11A", (NODE, "GPU-11aa")),
        ("12", (NODE, "GPU-12bb")),
        ("MIG-11", (NODE, "MIG-11cc")),
        ("GPU-9", ("node-2", "GPU-99")),
    ],
)
def test_drain_and_undrain(engine: sa.Engine, reference: str, found: tuple[str, str], database_url: str) -> None:
    announce(engine, **GPUS)
    announce(engine, "node-2", gpus=[{"uuid": "GPU-99"}])
    name, device = found
    with listening(database_url, nodes.CHANNEL) as listener:
        for _ in range(2):
            assert nodes.set_drained(engine, reference, True) == found
            row = node(engine, name)
            assert (row.drained, row.drained_devices) == (not device, [device] if device else [])
        assert heard(listener, 2) == [(nodes.CHANNEL, {"node": name})] * 2
    for _ in range(2):
        assert nodes.set_drained(engine, reference, False) == found
        assert (node(engine, name).drained, node(engine, name).drained_devices) == (False, [])


def test_a_drained_gpu_that_vanished_can_be_undrained(engine: sa.Engine) -> None:
    announce(engine, **GPUS)
    nodes.set_drained(engine, "GPU-11", True)
    nodes.set_drained(engine, "GPU-12", True)
    announce(engine)
    assert nodes.set_drained(engine, "GPU-11", False) == (NODE, "GPU-11aa")
    assert node(engine).drained_devices == ["GPU-12bb"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("11", r"several GPUs begin with '11': GPU-11aa \(node-1\), MIG-11cc \(node-1\)"),
        ("GPU-1", "several GPUs begin with"),
        ("GPU-12b_", "there is no machine and no GPU"),
        ("node", "there is no machine and no GPU"),
        ("", "there is no machine and no GPU"),
    ],
)
def test_what_cannot_be_drained_is_said(engine: sa.Engine, reference: str, message: str) -> None:
    announce(engine, **GPUS)
    with pytest.raises(InputError, match=message):
        nodes.set_drained(engine, reference, True)
    assert not node(engine).drained


def test_quotas_come_and_go(engine: sa.Engine, database_url: str) -> None:
    with listening(database_url, nodes.CHANNEL) as listener:
        quotas.set_quota(engine, "research", nominal={"gpu": 2}, hard={"gpu": 4, "jobs": 10}, weight=0.5)
        quotas.set_quota(engine, "emergency")
        before = {row.tenant: row for row in quotas.list_quotas(engine)}
        quotas.set_quota(engine, "research", weight=2)
        assert quotas.delete_quota(engine, "emergency")
        assert not quotas.delete_quota(engine, "emergency")
        notices = [facts["quota"] for _, facts in heard(listener, 4)]
    assert notices == ["research", "emergency", "research", "emergency"]
    assert (before["research"].nominal, before["research"].hard) == ({"gpu": 2}, {"gpu": 4, "jobs": 10})
    assert (before["emergency"].weight, before["emergency"].nominal, before["emergency"].hard) == (1.0, {}, {})
    (row,) = quotas.list_quotas(engine)
    assert (row.tenant, row.weight, row.nominal, row.hard) == ("research", 2.0, {}, {})
    assert row.updated > before["research"].updated


@pytest.mark.parametrize(
    "quota",
    [{"weight": 0}, {"weight": -1.0}, {"weight": float("inf")}, {"weight": float("nan")},
     {"nominal": {"gpu": -1}}, {"hard": {"cpu": -2}}],
)  # fmt: skip
def test_numbers_that_are_no_quota(engine: sa.Engine, quota: dict[str, object]) -> None:
    with pytest.raises(InputError, match="quota"):
        quotas.set_quota(engine, "research", **quota)  # type: ignore[arg-type]
    assert quotas.list_quotas(engine) == []


@pytest.mark.parametrize(
    "change", ["nodes SET jobs = -1", "nodes SET expires = heartbeat - interval '1 s'", "quotas SET weight = 0"]
)
def test_the_tables_refuse_what_cannot_be(engine: sa.Engine, change: str) -> None:
    announce(engine)
    quotas.set_quota(engine, "research")
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {change}"))


def test_a_rows_order_is_its_columns(engine: sa.Engine) -> None:
    """Rows are made by position: no column may be taken for another."""
    announce(engine)
    quotas.set_quota(engine, "research")
    for table, row in (("nodes", node(engine)), ("quotas", quotas.list_quotas(engine)[0])):
        with engine.connect() as connection:
            stored = connection.execute(sa.text(f"SELECT * FROM {table}")).mappings().one()  # noqa: S608
        assert {name: getattr(row, name) for name in stored} == dict(stored)
