"""What `clara-flow status` and `clara-flow doctor` tell of the DICOM side of a platform that runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgres_fixture import database_url  # noqa: F401

from clara_flow.cli.activity import Activity, activity_json, activity_lines
from clara_flow.infra.pool.housekeeping import Report
from clara_flow.records import deliveries, dicom_config
from clara_flow.records.database import connect, transaction
from clara_flow.records.dicom_models import AeTitle, Destination, Group, SourceNode
from clara_flow.services.dicom.heartbeats import Heartbeats, destination_beat
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom_traffic import traffic
from clara_flow.services.doctor_dicom_traffic import check_dicom_traffic
from clara_flow.services.findings import Finding, Level
from clara_flow.services.state_file import StateFile
from clara_flow.settings import Settings, load_settings

TABLES = "deliveries, dicom_destinations, dicom_aetitles, dicom_sources, dicom_groups"


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:  # noqa: F811
    return load_settings(data_dir=tmp_path, database_url=database_url, host="127.0.0.1", dicom_port=11112)


@pytest.fixture
def engine(settings: Settings, database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))
    yield engine
    engine.dispose()


def examined(settings: Settings) -> list[Finding]:
    """What the doctor finds while the platform is supervised."""
    file = StateFile(settings.data_dir)
    file.prepare()
    with file.supervising():
        return list(check_dicom_traffic(settings))


def configure(engine: sa.Engine) -> None:
    processing = {"pipeline-brain": "brain-extraction"}
    dicom_config.add_aetitle(engine, AeTitle(name="BRAIN", ae_title="BRAIN", processor_settings=processing))
    dicom_config.add_source(engine, SourceNode(ae_title="MR", host="10.0.0.1"))
    dicom_config.add_destination(engine, Destination(name="PACS", ae_title="P", host="10.0.0.2", port=104))


def register(engine: sa.Engine, destination: str) -> deliveries.Delivery:
    (delivery,) = deliveries.register(
        engine, job_id="j", agent="ClaraSCU", parameters=json.dumps(destination), uris=["a"], own_agents=["ClaraSCU"]
    )
    return delivery


def test_nothing_is_said_of_a_platform_that_is_down(settings: Settings, engine: sa.Engine) -> None:
    assert list(check_dicom_traffic(settings)) == []


def test_what_is_lacking_before_anything_can_be_sent(settings: Settings, engine: sa.Engine) -> None:
    texts = [(found.level, found.text) for found in examined(settings)]
    assert texts == [
        (Level.NOTE, "there is no AE title: nothing can be sent"),
        (Level.NOTE, "there is no source: every sender is rejected"),
    ]
    open_to_all = settings.model_copy(update={"dicom_reject_unknown_sources": False})
    assert [found.text for found in examined(open_to_all)] == [texts[0][1]]


def test_all_is_well(settings: Settings, engine: sa.Engine) -> None:
    configure(engine)
    (found,) = examined(settings)
    assert (found.level, found.text) == (Level.OK, "1 source may send to BRAIN; results go to PACS")
    assert activity_lines(Activity(traffic(settings, engine)))[1:] == [
        "received      nothing yet",
        "destination   PACS works",
    ]


def test_a_loop_that_hangs_is_named(settings: Settings, engine: sa.Engine) -> None:
    configure(engine)
    folder = Places.of(settings).heartbeats
    folder.mkdir(parents=True)
    (folder / "grouper.json").write_text(
        json.dumps({"at": time.time() - 95, "boot": "an earlier one", "pid": 1, "facts": {}})
    )
    (found,) = examined(settings)
    assert (found.level, found.text.rpartition(" ")[0][:31]) == (Level.NOTE, "the grouper was last heard of 9")
    assert "dicom.log" in found.remedy


def test_what_keeps_results_from_arriving(settings: Settings, engine: sa.Engine) -> None:
    """A destination whose breaker is open, one that is not there, and what failed there."""
    configure(engine)
    dicom_config.update_aetitle(
        engine, "BRAIN", processor_settings={"pipeline-b": "brain-extraction", "argument-DESTINATION": "Attic"}
    )
    beats = Heartbeats(Places.of(settings).heartbeats)
    beats.beat(destination_beat("PACS"), breaker="open", last_error="unreachable")
    beats.beat("listener-0", open=2)
    beats.beat("blocks", unused=json.dumps({"attic": "it has no port"}))
    register(engine, "pacs")
    deliveries.fail(engine, register(engine, "Attic").id, False, "there is no destination")
    deliveries.discard(engine, register(engine, "Attic").id)
    now = datetime.now(UTC)
    with transaction(engine) as session:
        session.add(Group(aetitle="BRAIN", key_digest="k", opened=now, last_arrival=now - timedelta(seconds=121)))
    found = {finding.text: finding.remedy for finding in examined(settings)}
    assert list(found) == [
        "the Prefect block attic is not used: it has no port",
        "results of BRAIN go to Attic, which is no destination",
        "destination PACS does not work (unreachable); 1 delivery waiting",
        "1 delivery to Attic failed for good: nothing tries again by itself",
    ]
    assert "clara-flow dicom destination test PACS" in found[list(found)[2]]
    report = Report(now.isoformat(), 7, {"orphaned jobs": 2}, {"retention": "no room"})
    activity = Activity(traffic(settings, engine), report)
    assert activity_lines(activity) == [
        "listens       BRAIN at 127.0.0.1:11112; associations open: 2",
        "received      last instance 2 min ago; groups that are no jobs yet: 1",
        "destination   PACS does not work (unreachable), is tried again; 1 wait, the oldest from 0 s ago",
        "destination   Attic is not there; 1 failed",
        "housekeeping  last round 0 s ago; mended since its start: 2 orphaned jobs; cannot: retention: no room",
    ]
    told = json.loads(json.dumps(activity_json(activity)))
    assert told["dicom"]["associations"] == 2
    assert [target["failed"] for target in told["dicom"]["targets"]] == [0, 1]
    assert told["housekeeping"]["rounds"] == 7
    assert activity_json(Activity()) == {"dicom": None, "housekeeping": None}
