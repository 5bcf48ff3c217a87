"""Health follows the loops' progress; metrics and status say what waits, and nothing of patients."""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from services.gateway.serving import client, served

from clara_flow.deployments.trigger import House
from clara_flow.records import deliveries, dicom_config
from clara_flow.records.database import connect, transaction
from clara_flow.records.dicom_models import Destination, Group, GroupState
from clara_flow.records.owner import boot_id
from clara_flow.services import health
from clara_flow.services.dicom import heartbeats
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.places import Places
from clara_flow.services.gateway import create_app

LOOPS = sorted({"listener-0" if loop == heartbeats.LISTENER else loop for loop in health.SERVICES.values()})
FACTS = {"open": 3, "open_associations": json.dumps([{"association": "a", "instances": 7}])}


def beat_all(house: House) -> None:
    beats = Heartbeats(Places.of(house.settings).heartbeats)
    for loop in LOOPS:
        beats.beat(loop, **(FACTS if loop == "listener-0" else {}))


def age(house: House, loop: str, seconds: float) -> None:
    """Make a loop one that was heard of so long ago."""
    path = Places.of(house.settings).heartbeats / f"{loop}.json"
    then = {"at": time.time() - seconds, "boot": boot_id(), "since_boot_s": time.monotonic() - seconds}
    path.write_text(json.dumps({**then, "pid": os.getpid(), "facts": FACTS}))


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_healthy_is_when_every_loop_goes_round(house: House, gateway: httpx.Client, path: str) -> None:
    unheard = gateway.get(path)
    assert (unheard.status_code, unheard.text) == (503, "Unhealthy")
    beat_all(house)
    heard = gateway.get(path)
    assert (heard.status_code, heard.text) == (200, "Healthy")


@pytest.mark.parametrize("loop", LOOPS)
def test_one_dead_loop_is_unhealthy(house: House, gateway: httpx.Client, loop: str) -> None:
    beat_all(house)
    age(house, loop, heartbeats.SILENT_AFTER_S + 1)
    assert gateway.get("/health/ready").status_code == 503
    services = gateway.get("/health/status").json()["services"]
    stopped = {name for name, state in services.items() if state == "Stopped"}
    assert stopped == {name for name, own in health.SERVICES.items() if loop.partition("-")[0] == own}


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0])
def test_a_clock_that_is_set_kills_no_loop_and_hides_no_dead_one(
    house: House, gateway: httpx.Client, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    beat_all(house)
    age(house, "grouper", health.SILENT_AFTER_S + 1)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump_s)
    services = gateway.get("/health/status").json()["services"]
    assert {name for name, state in services.items() if state != "Running"} == {"JobSubmission"}


def test_a_beat_before_the_machine_was_started_again_is_old(house: House) -> None:
    path = Places.of(house.settings).heartbeats / "grouper.json"
    path.parent.mkdir(parents=True)
    then = {"at": time.time() - 60, "boot": "another", "since_boot_s": time.monotonic()}
    path.write_text(json.dumps({**then, "pid": 1, "facts": {}}))
    (beat,) = health.beats(house.settings)
    assert 60 <= beat.age_s < 120


def test_each_listener_that_should_run_is_counted_and_those_of_earlier_days_are_not(
    house: House, gateway: httpx.Client
) -> None:
    beat_all(house)
    beats = Heartbeats(Places.of(house.settings).heartbeats)
    beats.beat("adapter", listeners=2)
    assert gateway.get("/health/status").json()["services"]["Scp"] == "Stopped"  # the second one hangs
    beats.beat("listener-1")
    age(house, "listener-7", 86_400)
    assert gateway.get("/health/ready").status_code == 200


def test_status_tells_associations_ages_and_queues(house: House, gateway: httpx.Client) -> None:
    beat_all(house)
    now = datetime.now(UTC)
    with transaction(house.engine) as session:
        session.add(
            Group(
                id=uuid.uuid4(), aetitle="BRAIN", key_digest="0", state=GroupState.OPEN,
                opened=now - timedelta(minutes=5), last_arrival=now,
            )
        )  # fmt: skip
    status = gateway.get("/health/status").json()
    assert status["activeDimseConnections"] == 3
    assert status["associations"] == [{"association": "a", "instances": 7}]
    assert set(status["services"]) == set(health.SERVICES)
    assert set(status["heartbeats"]) == set(LOOPS)
    assert status["queues"]["open groups"]["depth"] == 1
    assert status["queues"]["open groups"]["oldestSeconds"] >= 300
    assert status["space"]["freeBytes"] > 0


def test_metrics_are_prometheus(house: House, gateway: httpx.Client) -> None:
    beat_all(house)
    now = datetime.now(UTC)
    with transaction(house.engine) as session:
        session.add(Group(aetitle="BRAIN", key_digest="0", opened=now, last_arrival=now, instances=7))
    families = {family.name: family for family in text_string_to_metric_families(gateway.get("/metrics").text)}
    assert families["clara_flow_database_up"].samples[0].value == 1
    assert families["clara_flow_dimse_associations"].samples[0].value == 3
    (sample,) = families["clara_flow_instances"].samples
    assert (sample.labels, sample.value) == ({"aetitle": "BRAIN", "state": "OPEN"}, 7)


def test_each_destination_is_told(house: House, gateway: httpx.Client) -> None:
    """What waits and since when, its breaker, its last success; also a Prefect block that is not used."""
    for name in ("PACS", "Idle"):
        dicom_config.add_destination(house.engine, Destination(name=name, ae_title="P", host="10.0.0.2", port=104))
    for uri in "ab":
        deliveries.register(house.engine, job_id="j", agent="A", parameters='"pacs"', uris=[uri], own_agents=["A"])
    (taken,) = deliveries.take(house.engine, "A", 1, 30, destination="pacs")
    deliveries.succeed(house.engine, taken.id, lease=taken.lease)
    with house.engine.begin() as connection:
        connection.execute(sa.text("UPDATE deliveries SET created = created - interval '5 minutes'"))
    beats = Heartbeats(Places.of(house.settings).heartbeats)
    beats.beat(heartbeats.destination_beat("PACS"), breaker="open", last_error="unreachable")
    beats.beat("blocks", unused=json.dumps({"archive": "taken"}))
    status = gateway.get("/health/status").json()
    assert status["unusedBlocks"] == {"archive": "taken"}
    pacs = status["destinations"]["PACS"]
    last_success = datetime.fromisoformat(pacs.pop("lastSuccess"))
    assert abs((datetime.now(UTC) - last_success).total_seconds()) < 60
    assert 300 <= pacs.pop("oldestSeconds") < 400
    assert pacs == {
        "isKnown": True, "paused": False, "breaker": "open", "lastError": "unreachable",
        "depth": 1, "underWay": 0, "failed": 0,
    }  # fmt: skip
    idle = status["destinations"]["Idle"]
    assert (idle["breaker"], idle["depth"], idle["oldestSeconds"], idle["lastSuccess"]) == ("closed", 0, 0, None)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(gateway.get("/metrics").text)
        for sample in family.samples
    }
    assert samples["clara_flow_destination_queue_depth", "PACS"] == 1
    assert 300 <= samples["clara_flow_destination_oldest_seconds", "PACS"] < 400
    assert samples["clara_flow_destination_breaker", "PACS", "open"] == 1
    assert samples["clara_flow_destination_breaker", "PACS", "closed"] == 0
    assert samples["clara_flow_destination_breaker", "Idle", "closed"] == 1
    name = "clara_flow_destination_last_success_timestamp_seconds"
    assert samples[name, "PACS"] == pytest.approx(last_success.timestamp(), abs=1)
    assert (name, "Idle") not in samples


def test_a_database_that_is_away_is_told(house: House) -> None:
    away = House(settings=house.settings, engine=connect("postgresql://nobody@127.0.0.1:1/none"), catalog=house.catalog)
    with served(create_app(away), house.settings.gateway_port) as url, client(url) as asking:
        assert asking.get("/health/status").json()["database"] == "Stopped"
        assert "clara_flow_database_up 0.0" in asking.get("/metrics").text
