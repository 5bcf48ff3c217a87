"""Sources and destinations follow blocks: those of REST and CLI stay, and nothing goes that nobody deleted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_flow.errors import Conflict
from clara_flow.records import deliveries
from clara_flow.records import dicom_config as rows
from clara_flow.records.dicom_blocks import follow_destinations, follow_sources
from clara_flow.records.dicom_models import Destination, SourceNode

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SAVED = BEGAN + timedelta(hours=1)
NAMES = ["a", "b", "c"]


def empty(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE dicom_sources, dicom_destinations, deliveries CASCADE"))


@pytest.fixture(autouse=True)
def _empty(engine: sa.Engine) -> None:
    empty(engine)


def of_block(name: str, port: int = 104, updated: datetime = SAVED, **more: Any) -> Destination:
    facts = {"ae_title": "PACS", "host": "127.0.0.1", "block": name, "block_updated": updated, **more}
    return Destination(name=name, port=port, **facts)


def by_hand(name: str, **more: Any) -> Destination:
    return Destination(**{"name": name, "ae_title": "HAND", "host": "127.0.0.1", "port": 1, **more})


def ports(engine: sa.Engine) -> dict[str, tuple[int | None, bool]]:
    """Port of each destination, and whether a block has made it."""
    return {row.name: (row.port, bool(row.block)) for row in rows.list_destinations(engine)}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("save"), st.sampled_from(NAMES), st.integers(1, 3)),
            st.tuples(st.sampled_from(["delete", "break", "add by hand", "delete by hand"]), st.sampled_from(NAMES)),
            st.tuples(st.just("another database")),
        ),
        max_size=12,
    )
)
def test_destinations_are_what_blocks_and_hands_say(engine: sa.Engine, steps: list[tuple[Any, ...]]) -> None:
    empty(engine)
    began, clock = BEGAN, SAVED
    blocks: dict[str, tuple[int, datetime]] = {}
    broken: set[str] = set()
    expected: dict[str, tuple[int | None, bool]] = {}
    for step, *about in steps:
        clock += timedelta(seconds=1)
        name = str(about[0]) if about else ""
        if step == "save":
            blocks[name] = int(about[1]), clock
            broken.discard(name)
        elif step == "delete":
            blocks.pop(name, None)
            broken.discard(name)
        elif step == "break" and name in blocks:
            broken.add(name)
        elif step == "add by hand" and name not in expected:
            rows.add_destination(engine, by_hand(name))
            expected[name] = 1, False
        elif step == "delete by hand" and expected.get(name, (0, True))[1] is False:
            rows.delete_destination(engine, name)
            del expected[name]
        elif step == "another database":
            blocks, broken, began = {}, set(), clock
            expected = {name: (port, False) for name, (port, _) in expected.items()}
        wanted = [of_block(key, *facts) for key, facts in blocks.items() if key not in broken]
        first = follow_destinations(engine, wanted, unclear=broken, since=began)
        expected = {key: was for key, was in expected.items() if not was[1] or key in blocks}
        for row in wanted:
            if expected.get(row.name, (0, True))[1]:
                expected[row.name] = row.port, True
            else:
                assert row.name in first.taken
        assert ports(engine) == expected
        again = follow_destinations(engine, wanted, unclear=broken, since=began)
        assert (again.put, again.removed, again.freed) == ([], [], [])


def test_a_row_of_a_block_is_changed_there_alone_and_may_be_paused(engine: sa.Engine) -> None:
    follow_destinations(engine, [of_block("pacs")], unclear=(), since=BEGAN)
    for change in (
        lambda: rows.update_destination(engine, "PACS", port=5),
        lambda: rows.delete_destination(engine, "PACS"),
        lambda: rows.add_destination(engine, by_hand("PACS")),
    ):
        with pytest.raises(Conflict):
            change()
    assert rows.update_destination(engine, "PACS", port=104, paused=True).paused
    follow_destinations(engine, [of_block("pacs", 105, SAVED + timedelta(1))], unclear=(), since=BEGAN)
    (row,) = rows.list_destinations(engine)
    assert (row.port, row.paused) == (105, True)


def test_what_waits_is_tried_at_once_when_a_block_was_saved_anew(engine: sa.Engine) -> None:
    """Also where only its password is another one, which no column shows."""
    follow_destinations(engine, [of_block("pacs")], unclear=(), since=BEGAN)
    (delivery,) = deliveries.register(
        engine, job_id="j", agent="ClaraSCU", parameters=json.dumps("PACS"), uris=["a"], own_agents=["ClaraSCU"]
    )
    later = datetime.now(UTC) + timedelta(hours=1)
    put_off = sa.text("UPDATE deliveries SET not_before = :later")
    with engine.begin() as connection:
        connection.execute(put_off, {"later": later})
    follow_destinations(engine, [of_block("pacs")], unclear=(), since=BEGAN)
    assert deliveries.find_delivery(engine, delivery.id).not_before == later
    follow_destinations(engine, [of_block("pacs", updated=SAVED + timedelta(1))], unclear=(), since=BEGAN)
    assert deliveries.find_delivery(engine, delivery.id).not_before is None


def test_sources_follow_too(engine: sa.Engine) -> None:
    def source(title: str, host: str = "10.0.0.1") -> SourceNode:
        return SourceNode(ae_title=title, host=host, block="ct", block_updated=SAVED)

    rows.add_source(engine, SourceNode(ae_title="MR", host="10.0.0.2"))
    done = follow_sources(engine, [source("CT"), source("MR")], unclear=(), since=BEGAN)
    assert (done.put, done.taken) == (["CT"], ["MR"])
    with pytest.raises(Conflict, match="source 'CT' is made of the Prefect block 'ct'"):
        rows.delete_source(engine, "CT")
    assert follow_sources(engine, [], unclear=["ct"], since=BEGAN).removed == []  # nobody knows what it was to be
    done = follow_sources(engine, [source("ct")], unclear=(), since=BEGAN)
    assert (done.put, done.removed) == (["ct"], ["CT"])
    assert {row.ae_title: row.host for row in rows.list_sources(engine)} == {"MR": "10.0.0.2", "ct": "10.0.0.1"}
