"""`clara-flow results` as users type it, on a real database."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from postgres_fixture import database_url  # noqa: F401

from clara_flow.cli import start
from clara_flow.records import deliveries, dicom_config, payloads
from clara_flow.records.database import connect
from clara_flow.records.deliveries import ItemNews
from clara_flow.records.dicom_models import Delivery, DeliveryState, Destination, ItemState

Command = Callable[..., tuple[int, str, str]]
URIS = ["operators/writer/a.dcm", "operators/writer/b [1].dcm"]


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE deliveries, delivery_items, dicom_destinations"))
    for name in ("PACS", "ARCHIVE"):
        dicom_config.add_destination(engine, Destination(name=name, ae_title=name, host="127.0.0.1", port=104))
    yield engine
    engine.dispose()


@pytest.fixture
def command(
    engine: sa.Engine,
    database_url: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs `clara-flow results ...`: exit status, stdout, stderr."""
    del engine
    monkeypatch.setenv("CLARA_FLOW_DATABASE_URL", database_url)
    monkeypatch.setenv("CLARA_FLOW_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clara-flow", "results", *arguments])
        with pytest.raises(SystemExit) as ended:
            start.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def register(engine: sa.Engine, destination: str = "PACS", **facts: Any) -> Delivery:
    (task,) = deliveries.register(
        engine, job_id="j", agent="ClaraSCU", parameters=json.dumps(destination), uris=URIS, own_agents=["ClaraSCU"],
        **facts,
    )  # fmt: skip
    return task


def failed(engine: sa.Engine, destination: str = "PACS", **facts: Any) -> Delivery:
    """One whose first file was sent."""
    task = register(engine, destination, **facts)
    news = [ItemNews(URIS[0], ItemState.SENT), ItemNews(URIS[1], ItemState.POISON, "0xA900 [identifier]")]
    deliveries.note_items(engine, task.id, news)
    return deliveries.fail(engine, task.id, False, "1 of 2 files was refused")


def states(engine: sa.Engine) -> dict[uuid.UUID, DeliveryState]:
    return {task.id: task.state for task in deliveries.list_deliveries(engine)}


def test_without_deliveries_it_says_so(command: Command) -> None:
    assert command("list")[:2] == (0, "No deliveries yet.\n")
    assert command("list", "--state", "failed")[:2] == (0, "No delivery is like that.\n")
    assert command("list", "--json")[:2] == (0, "[]\n")
    assert command("retry", "--failed")[:2] == (0, "0 failed deliveries will be tried again\n")


def test_a_list_says_where_they_go_and_why_not(command: Command, engine: sa.Engine) -> None:
    bad, waiting, gone = failed(engine), register(engine, "ARCHIVE [2]"), register(engine)
    deliveries.take(engine, "ClaraSCU", 1, 60, "archive [2]")
    deliveries.fail(engine, waiting.id, True, "no answer", delay_s=89)
    deliveries.discard(engine, gone.id)
    status, out, _ = command("list")
    assert status == 0
    head, *lines = out.splitlines()
    assert head.split() == ["delivery", "state", "destination", "job", "files", "retries", "age"]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[::2]]
    assert [row[:6] for row in cells] == [
        [str(gone.id)[:8], "discarded", "PACS (ClaraSCU)", "j", "2", "0"],
        [str(waiting.id)[:8], "Pending", "ARCHIVE [2] (ClaraSCU)", "j", "2", "1"],
        [str(bad.id)[:8], "Failed", "PACS (ClaraSCU)", "j", "2", "0"],
    ]
    reasons = ["    discarded", "    no answer; next try in 1 min", "    1 of 2 files was refused"]
    assert lines[1::2] == reasons

    def listed(*options: str) -> list[str]:
        status, out, _ = command("list", "--json", *options)
        assert status == 0
        return [row["id"] for row in json.loads(out)]

    assert listed("-s", "FAILED", "-d", "pacs") == [str(gone.id), str(bad.id)]
    assert listed("--state", "in-progress") == []
    assert listed("--agent", "clarascu", "--limit", "1") == [str(gone.id)]
    assert listed("--job", "other") == []


@pytest.mark.parametrize(("age", "shown"), [(0, "0 s"), (90, "2 min"), (7200, "2 h"), (259_200, "3 d")])
def test_ages_are_short(command: Command, engine: sa.Engine, age: int, shown: str) -> None:
    task = register(engine)
    with engine.begin() as connection:
        created = {"id": task.id, "created": datetime.now(UTC) - timedelta(seconds=age - 0.01)}
        connection.execute(sa.text("UPDATE deliveries SET created = :created WHERE id = :id"), created)
    assert command("list")[1].endswith(f" {shown}\n")


def test_one_is_shown_file_by_file(command: Command, engine: sa.Engine) -> None:
    task = failed(engine)
    status, out, _ = command("show", str(task.id)[:8])
    assert status == 0
    assert f"delivery     {task.id}" in out
    assert "reason       1 of 2 files was refused" in out
    assert "next try" not in out
    assert [line.split() for line in out.splitlines()[-4:]] == [
        ["state", "attempts", "file"],
        ["SENT", "1", URIS[0]],
        ["POISON", "1", *URIS[1].split()],
        ["0xA900", "[identifier]"],
    ]
    facts = json.loads(command("show", str(task.id), "--json")[1])
    assert (facts["state"], facts["reason"], facts["retries"]) == ("Failed", "1 of 2 files was refused", 0)
    assert [item["state"] for item in facts["items"]] == ["SENT", "POISON"]


def test_retrying_sends_what_was_not_sent(command: Command, engine: sa.Engine) -> None:
    task = failed(engine)
    status, out, _ = command("retry", str(task.id)[:8])
    assert (status, out) == (0, f"delivery {task.id} will be tried again\n")
    facts = json.loads(command("show", str(task.id), "--json")[1])
    assert facts["state"] == "Pending"
    assert [item["state"] for item in facts["items"]] == ["SENT", "PENDING"]


def test_all_that_failed_are_retried_at_once(command: Command, engine: sa.Engine) -> None:
    payload = payloads.create_payload(engine)
    here, there, discarded = failed(engine), failed(engine, "ARCHIVE"), failed(engine)
    bare = failed(engine, payload_id=payload.id)
    deliveries.discard(engine, discarded.id)
    payloads.mark_removed(engine, payload.id)
    status, out, _ = command("retry", "--failed", "--destination", "pacs")
    assert (status, out) == (
        0, "1 failed delivery will be tried again; 1 cannot be: the files of its job were removed\n",
    )  # fmt: skip
    expected = {here.id: DeliveryState.PENDING} | dict.fromkeys([there.id, discarded.id, bare.id], DeliveryState.FAILED)
    assert states(engine) == expected


def test_one_for_a_destination_that_is_not_there_says_so(command: Command, engine: sa.Engine) -> None:
    """Trying it again would come to nothing; once somebody has added the destination, it goes."""
    task = failed(engine, "ATTIC")
    complaint = "there is no destination 'ATTIC'; add it first: clara-flow dicom destination add"
    status, out, err = command("retry", str(task.id))
    assert (status, out) == (3, "")
    assert err == f"clara-flow: delivery {task.id} cannot be retried: {complaint}\n"
    assert command("retry", "--failed")[1] == f"0 failed deliveries will be tried again; 1 cannot be: {complaint}\n"
    node = Destination(name="Attic", ae_title="A", host="127.0.0.1", port=104)
    dicom_config.add_destination(engine, node)
    assert command("retry", str(task.id))[0] == 0
    assert states(engine) == {task.id: DeliveryState.PENDING}


def test_discarding_and_its_way_back(command: Command, engine: sa.Engine) -> None:
    task = register(engine)
    assert command("discard", str(task.id), "--reason", "sent by hand")[:2] == (0, f"delivery {task.id} is discarded\n")
    assert json.loads(command("list", "--json")[1])[0]["reason"] == "sent by hand"
    assert command("retry", str(task.id))[0] == 0
    assert states(engine) == {task.id: DeliveryState.PENDING}


def test_one_that_cannot_be_changed_does_not_keep_the_others(command: Command, engine: sa.Engine) -> None:
    done, bad = register(engine), failed(engine)
    deliveries.succeed(engine, done.id)
    for verb, state in (("retry", DeliveryState.PENDING), ("discard", DeliveryState.FAILED)):
        status, out, err = command(verb, "ffffffff", str(done.id), str(bad.id))
        assert status == 3
        assert str(bad.id) in out
        assert "there is no delivery ffffffff" in err
        assert f"delivery {done.id} is Succeeded" in err
        assert states(engine) == {done.id: DeliveryState.SUCCEEDED, bad.id: state}


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("list", "--state", "lost"), 2, "--state takes pending, inprogress, succeeded, failed, found 'lost'"),
        (("retry",), 2, "takes ids, or --failed"),
        (("retry", "--failed", "ab"), 2, "takes ids, or --failed"),
        (("retry", "ab", "--destination", "PACS"), 2, "goes with --failed"),
        (("discard",), 2, "Missing argument"),
        (("show", "xyz"), 3, "ids are hexadecimal"),
        (("show", "abcdef"), 3, "there is no delivery abcdef"),
    ],
)
def test_wrong_usage_is_named(command: Command, arguments: tuple[str, ...], status: int, complaint: str) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (status, "")
    assert complaint in err


def test_without_a_database_it_says_what_to_do(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLARA_FLOW_DATABASE_URL")
    status, _, err = command("list")
    assert status == 4
    assert "clara-flow up" in err


@pytest.mark.parametrize("arguments", [(), ("list",), ("show",), ("retry",), ("discard",)])
def test_every_command_explains_itself_with_an_example(command: Command, arguments: tuple[str, ...]) -> None:
    status, out, _ = command(*arguments, "--help")
    assert status == 0
    assert "Example" in out
