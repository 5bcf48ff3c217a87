"""`clara-flow dicom` as users type it, on a real database."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from dcmtk import Storescp
from platform_fixture import CLARA_FLOW
from postgres_fixture import database_url  # noqa: F401
from sqlmodel import Session

from clara_flow.cli import start
from clara_flow.deployments.pipelines import find_definition
from clara_flow.deployments.trigger import compile_definition
from clara_flow.plan import Plan
from clara_flow.records import dicom_config as rows
from clara_flow.records import pipelines
from clara_flow.records.database import connect
from clara_flow.records.dicom_models import CommitmentReport
from clara_flow.services.dicom.config_check import is_secret
from clara_flow.services.dicom.wanted_destinations import destinations_of
from clara_flow.settings import load_settings

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def engine(database_url: str) -> Any:  # noqa: F811
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "TRUNCATE dicom_aetitles, dicom_sources, dicom_destinations, dicom_groups, dicom_associations, "
                "dicom_commitment_reports CASCADE"
            )
        )
    yield engine
    engine.dispose()


@pytest.fixture
def command(
    database_url: str,  # noqa: F811
    engine: sa.Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs `clara-flow dicom ...`: exit status, stdout, stderr. Nothing is configured at first."""
    monkeypatch.setenv("CLARA_FLOW_DATABASE_URL", database_url)
    monkeypatch.setenv("CLARA_FLOW_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clara-flow", "dicom", *arguments])
        with pytest.raises(SystemExit) as ended:
            start.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def facts(outcome: tuple[int, str, str]) -> Any:
    status, out, err = outcome
    assert status == 0, err
    return json.loads(out)


def test_the_examples_of_the_issue(command: Command) -> None:
    assert command("aetitle", "add", "BRAIN", "--pipeline", "brain-extraction", "--timeout", "2")[0] == 0
    assert command("source", "add", "MODALITY", "--host", "127.0.0.1")[0] == 0
    pacs = ("PACS", "--aetitle", "ORTHANC", "--host", "127.0.0.1", "--port", "4242")
    assert command("destination", "add", *pacs)[0] == 0
    (brain,) = facts(command("aetitle", "list", "--json"))
    assert brain["processor_settings"] == {"pipeline-brain-extraction": "brain-extraction", "timeout": "2"}
    (modality,) = facts(command("source", "list", "--json"))
    assert (modality["ae_title"], modality["host"], modality["has_user_secret"]) == ("MODALITY", "127.0.0.1", False)
    (destination,) = facts(command("destination", "list", "--json"))
    assert (destination["ae_title"], destination["port"], destination["kind"]) == ("ORTHANC", 4242, "DIMSE")
    for noun, shown in (("aetitle", "brain-extraction"), ("source", "MODALITY"), ("destination", "ORTHANC at")):
        assert shown in command(noun, "list")[1]


def test_lists_of_nothing_say_what_that_means(command: Command) -> None:
    assert "nothing can be sent" in command("aetitle", "list")[1]
    assert "nobody may send" in command("source", "list")[1]
    assert "results stay where they are" in command("destination", "list")[1]


def test_every_option_of_an_ae_title_is_kept(command: Command, engine: sa.Engine) -> None:
    options = ("-p", "brain-extraction", "--set", "DESTINATION=A=B", "--group-by", "0010,0020", "--priority", "higher")
    flags = ("--overwrite", "--require-release", "--deidentify", "basic", "--ignore", "1.2.3", "--ignore", "1.2.4")
    more = ("--name", "head", "--setting", "late=ignore", "--json")
    added = facts(command("aetitle", "add", "BRAIN", *options, *flags, *more))
    assert added["processor_settings"] == {
        "pipeline-brain-extraction": "brain-extraction",
        "argument-DESTINATION": "A=B",
        "groupBy": "0010,0020",
        "priority": "higher",
        "late": "ignore",
    }
    row = rows.get_aetitle(engine, "head")
    assert (row.ae_title, row.overwrite_same_instance, row.require_release, row.deidentify) == (
        "BRAIN", True, True, "basic"
    )  # fmt: skip
    assert row.ignored_sop_classes == ["1.2.3", "1.2.4"]
    shown = command("aetitle", "show", "head")[1]
    for words in ("argument-DESTINATION", "A=B", "replaces the first", "basic", "1.2.3, 1.2.4"):
        assert words in shown
    assert facts(command("aetitle", "show", "head", "--json"))["name"] == "head"


def test_a_pipeline_is_a_name_a_file_or_an_id(command: Command, engine: sa.Engine, tmp_path: Path) -> None:
    definition = find_definition("brain-extraction").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(definition.replace("name: brain-extraction", "name: mine", 1))
    plan = compile_definition(load_settings(data_dir=tmp_path), path, {}).plan.model_dump(mode="json")
    registered = pipelines.create_pipeline(engine, name="registered", definition=definition, plan=plan)
    options = ("-p", "brain-extraction", "-p", str(path), "-p", str(registered.id))
    settings = facts(command("aetitle", "add", "BRAIN", *options, "--json"))["processor_settings"]
    assert settings == {
        "pipeline-brain-extraction": "brain-extraction",
        "pipeline-mine": str(path),
        "pipeline-registered": str(registered.id),
    }


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("aetitle", "add", "BRAIN"), 3, "at least one is needed"),
        (("aetitle", "add", "BRAIN", "-p", "nothing"), 3, "nothing does not exist"),
        (("aetitle", "add", "BRAIN", "-p", "brain-extraction", "-p", "brain-extraction"), 2, "two pipelines are named"),
        (("aetitle", "add", "BRAIN", "-p", "brain-extraction", "--set", "NOSUCH=1"), 3, "NOSUCH"),
        (("aetitle", "add", "BRAIN", "-p", "brain-extraction", "--set", "x"), 2, "--set takes NAME=VALUE"),
        (("aetitle", "add", "BRAIN", "-p", "brain-extraction", "--setting", "x"), 2, "--setting takes KEY=VALUE"),
        (("aetitle", "add", "BRAIN", "-p", "brain-extraction", "--priority", "soon"), 3, "priority: takes"),
        (("aetitle", "add", "BRAIN", "-p", "brain-extraction", "--group-by", "x"), 3, "groupBy: is no tag"),
        (("aetitle", "add", "SEVENTEEN_LETTERS", "-p", "brain-extraction"), 3, "at most 16 characters"),
        (("aetitle", "add", "BRAIN", "-p", "00000000-0000-0000-0000-000000000001"), 3, "there is no pipeline"),
        (("source", "add", "CT", "--host", "a b"), 3, "an IP address or a host name"),
        (("source", "add", "CT", "--host", "10.0.0.1", "--password-stdin"), 2, "needs --user"),
        (("source", "add", "CT"), 2, "--host"),
        (("source", "add", "CT", "--host", "10.0.0.1", "--user", "", "--password-stdin"), 2, "needs --user"),
        (("destination", "add", "PACS"), 2, "needs --aetitle, --host and --port"),
        (("destination", "add", "PACS", "--aetitle", " ", "--host", "h", "--port", "1"), 3, "1 to 16 characters"),
        (("destination", "add", "PACS", "--stow", "pacs"), 3, "the DICOMweb root"),
        (("aetitle", "show", "X"), 3, "there is no AE title 'X'"),
        (("aetitle", "delete", "X"), 3, "there is no AE title 'X'"),
        (("source", "delete", "X"), 3, "there is no source 'X'"),
        (("destination", "delete", "X"), 3, "there is no destination 'X'"),
        (("destination", "pause", "X"), 3, "there is no destination 'X'"),
        (("destination", "test", "X"), 3, "there is no destination 'X'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    command: Command,
    engine: sa.Engine,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    status: int,
    complaint: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("planted\n"))
    ended, out, err = command(*arguments)
    assert (ended, out) == (status, "")
    assert complaint in err
    assert rows.list_aetitles(engine) == rows.list_sources(engine) == rows.list_destinations(engine) == []


@pytest.mark.parametrize(
    ("arguments", "other", "differs"),
    [
        (("aetitle", "add", "BRAIN", "-p", "brain-extraction"), ("--timeout", "9"), "timeout: none -> 9"),
        (("source", "add", "CT", "--host", "10.0.0.1"), ("--max-associations", "3"), "max-associations: none -> 3"),
        (
            ("destination", "add", "PACS", "--aetitle", "P", "--host", "10.0.0.1", "--port", "104"),
            ("--tls", "--commitment"),
            "TLS: no -> yes; commitment: no -> yes",
        ),
    ],
)
def test_adding_may_be_repeated_and_does_not_change_by_accident(
    command: Command, engine: sa.Engine, arguments: tuple[str, ...], other: tuple[str, ...], differs: str
) -> None:
    assert command(*arguments)[1].endswith("added\n")
    assert command(*arguments)[1].endswith("there already\n")
    status, _, err = command(*arguments, *other)
    assert status == 3
    assert f"already; --replace changes it ({differs})" in err
    assert command(*arguments, *other, "--replace")[1].endswith(f"changed ({differs})\n")
    assert command(*arguments, *other)[1].endswith("there already\n")
    assert command(*arguments)[1].endswith("there already\n")  # what is not given stays as it is


def test_replace_changes_what_is_given_and_nothing_else(command: Command, engine: sa.Engine) -> None:
    settings = ("-p", "brain-extraction", "--timeout", "2", "--priority", "higher", "--set", "DESTINATION=A")
    command("aetitle", "add", "BRAIN", *settings, "--overwrite", "--deidentify", "basic", "--ignore", "1.2.3")
    row = facts(command("aetitle", "add", "BRAIN", "--timeout", "3", "--replace", "--json"))
    assert row["processor_settings"] == {
        "pipeline-brain-extraction": "brain-extraction",
        "timeout": "3",
        "priority": "higher",
        "argument-DESTINATION": "A",
    }
    assert (row["overwrite_same_instance"], row["deidentify"]) == (True, "basic")
    row = facts(
        command("aetitle", "add", "BRAIN", "--no-overwrite", "--deidentify", "", "--ignore", "", "--setting",
                "priority=", "--replace", "--json")
    )  # fmt: skip
    assert "priority" not in row["processor_settings"]
    assert (row["overwrite_same_instance"], row["deidentify"], row["ignored_sop_classes"]) == (False, "", [])
    assert command("aetitle", "add", "BRAIN", "--set", "NOSUCH=1", "--replace")[0] == 3
    assert rows.get_aetitle(engine, "BRAIN").processor_settings["argument-DESTINATION"] == "A"

    command("destination", "add", "PACS", "--aetitle", "P", "--host", "10.0.0.1", "--port", "104", "--tls")
    node = facts(command("destination", "add", "PACS", "--port", "11112", "--replace", "--json"))
    assert (node["ae_title"], node["host"], node["port"], node["tls"]) == ("P", "10.0.0.1", 11112, True)
    node = facts(command("destination", "add", "pacs", "--stow", "https://pacs/dicom-web", "--replace", "--json"))
    assert (node["kind"], node["ae_title"], node["port"]) == ("STOW", "", None)
    node = facts(
        command("destination", "add", "PACS", "--aetitle", "P", "--host", "h", "--port", "1", "--replace", "--json")
    )
    assert (node["kind"], node["url"], node["tls"]) == ("DIMSE", "", True)

    command("source", "add", "CT", "--host", "10.0.0.1", "--max-associations", "2")
    node = facts(command("source", "add", "CT", "--host", "10.0.0.2", "--replace", "--json"))
    assert (node["host"], node["maximum_associations"]) == ("10.0.0.2", 2)


def test_an_ae_title_says_what_is_still_lacking(command: Command) -> None:
    """A destination that its pipelines name, and a source; nothing of it when they are there."""
    add = ("aetitle", "add", "BRAIN", "-p", "brain-extraction")
    err = command(*add)[2]
    assert "Its results go to PACS, which is no destination yet. Add it: clara-flow dicom destination add PACS" in err
    assert "Nobody may send yet" in err
    command("source", "add", "CT", "--host", "10.0.0.1")
    command("destination", "add", "pacs", "--aetitle", "P", "--host", "10.0.0.1", "--port", "104")
    assert command(*add)[2] == ""
    err = command(*add, "--set", "DESTINATION=ARCHIVE", "--replace")[2]
    assert "Its results go to ARCHIVE, which is no destination yet" in err
    assert "Nobody may send" not in err


def test_destinations_are_found_in_published_definitions() -> None:
    command = ("python", "register.py", "--agent=clarascu", "--data", '[\\"PACS\\", \\"ARCHIVE\\"]')
    plan = SimpleNamespace(
        operators=[
            SimpleNamespace(container=SimpleNamespace(command=command)),
            SimpleNamespace(container=SimpleNamespace(command=("run", "--agent", "other", "--data", '"THIRD"'))),
            SimpleNamespace(container=SimpleNamespace(command=())),
        ]
    )
    assert destinations_of(cast(Plan, plan), ["ClaraSCU", "DICOMweb"]) == ["PACS", "ARCHIVE"]


def test_a_passcode_is_read_from_stdin_and_kept_as_a_hash(
    command: Command, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(passcode: str, *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(passcode))
        return command("source", "add", "CT", "--host", "10.0.0.1", "--user", "ct", "--password-stdin", *more)

    assert add("planted\n")[1].endswith("added\n")
    assert is_secret("planted", rows.get_source(engine, "CT").user_secret)
    assert add("planted")[1].endswith("there already\n")  # whatever the salt
    assert add("other\n")[0] == 3
    assert add("other\n", "--replace")[1].endswith("changed (another passcode)\n")
    assert is_secret("other", rows.get_source(engine, "CT").user_secret)
    assert "$" not in command("source", "list", "--json")[1]
    assert command("source", "add", "CT", "--host", "10.0.0.2", "--replace")[0] == 0
    assert is_secret("other", rows.get_source(engine, "CT").user_secret)
    assert command("source", "add", "CT", "--user", "", "--replace")[0] == 0
    assert rows.get_source(engine, "CT").user_secret == ""
    assert add("planted\n", "--replace")[0] == 0
    assert add("\n")[0] == 2


def test_a_deleted_ae_title_is_listed_until_it_has_drained(command: Command) -> None:
    command("aetitle", "add", "BRAIN", "-p", "brain-extraction")
    assert "still processed" in command("aetitle", "delete", "BRAIN")[1]
    assert "deleted, drains" in command("aetitle", "list")[1]
    assert command("aetitle", "delete", "BRAIN")[0] == 3
    assert command("aetitle", "add", "BRAIN", "-p", "brain-extraction")[1].endswith("added\n")
    assert "takes instances" in command("aetitle", "list")[1]


def test_sources_and_destinations_are_deleted_paused_and_resumed(command: Command, engine: sa.Engine) -> None:
    command("source", "add", "CT", "--host", "10.0.0.1")
    assert command("source", "delete", "CT")[:2] == (0, "source CT is deleted\n")
    add = ("destination", "add", "PACS", "--aetitle", "P", "--host", "10.0.0.1", "--port", "104")
    command(*add)
    assert command("destination", "pause", "pacs")[:2] == (0, "destination PACS is paused\n")
    assert rows.get_destination(engine, "PACS").paused
    assert command(*add)[1].endswith("there already\n")
    assert rows.get_destination(engine, "PACS").paused  # adding it again does not resume it
    assert command("destination", "resume", "PACS")[0] == 0
    assert not rows.get_destination(engine, "PACS").paused
    assert command("destination", "delete", "PACS")[:2] == (0, "destination PACS is deleted\n")


def test_a_destination_is_tried(command: Command, tmp_path: Path) -> None:
    peer = Storescp(tmp_path / "received")
    command("destination", "add", "PACS", "--aetitle", "P", "--host", "127.0.0.1", "--port", str(peer.port))
    status, out, _ = command("destination", "test", "PACS")
    assert status == 1
    assert "FAILED  connection" in out
    assert "Is the port right?" in out
    with peer:
        assert command("destination", "test", "PACS", "--no-store")[0] == 0
        assert peer.received == []
        status, out, _ = command("destination", "test", "pacs", "--json")
    assert status == 0
    assert [step["name"] for step in json.loads(out)] == ["name", "connection", "association", "echo", "store"]
    assert len(peer.received) == 1


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("dicom destination te", ["test"]),
        ("dicom destination test P", ["PACS"]),
        ("dicom aetitle show ", ["BRAIN"]),
        ("dicom source delete C", ["CT"]),
        ("results list --destination P", ["PACS"]),
    ],
)
def test_the_shell_completes_commands_and_names(
    command: Command,
    database_url: str,  # noqa: F811
    tmp_path: Path,
    typed: str,
    offered: list[str],
) -> None:
    command("aetitle", "add", "BRAIN", "-p", "brain-extraction")
    command("source", "add", "CT", "--host", "10.0.0.1")
    command("destination", "add", "PACS", "--aetitle", "P", "--host", "10.0.0.1", "--port", "104")
    words = f"clara-flow {typed}"
    environment = {
        "CLARA_FLOW_DATABASE_URL": database_url,
        "CLARA_FLOW_DATA_DIR": str(tmp_path),
        "_CLARA_FLOW_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [CLARA_FLOW], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_without_a_database_it_says_what_to_do(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLARA_FLOW_DATABASE_URL")
    status, _, err = command("source", "list")
    assert status == 4
    assert "clara-flow up" in err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        *(
            (noun, *verb)
            for noun in ("aetitle", "source", "destination")
            for verb in ((), ("add",), ("list",), ("delete",))
        ),
        ("aetitle", "show"),
        *(("destination", verb) for verb in ("test", "pause", "resume")),
    ],
)
def test_every_command_explains_itself_with_an_example(command: Command, arguments: tuple[str, ...]) -> None:
    status, out, _ = command(*arguments, "--help")
    assert status == 0
    assert "Example" in out


def test_reports_that_are_owed(command: Command, engine: sa.Engine) -> None:
    assert command("reports")[1].strip() == "No report is owed."
    asked = [["1.2.840.10008.5.1.4.1.1.4", ["1.2.3.1", "1.2.3.2"]]]
    row = CommitmentReport(
        id=uuid.uuid4(), association=uuid.uuid4(), calling_ae="CT1", called_ae="BRAIN", peer="192.0.2.7",
        transaction_uid="1.2.9", asked=asked, is_whole=True, not_before=datetime.now(UTC), message="nobody there",
        created=datetime(2026, 5, 6, 7, 8, tzinfo=UTC),
    )  # fmt: skip
    with Session(engine) as session:
        session.add(row)
        session.commit()
    status, out, _ = command("reports")
    assert status == 0
    assert "CT1" in out
    assert "nobody there" in out
    [facts] = json.loads(command("reports", "--json")[1])
    assert (facts["callingAe"], facts["instances"], facts["attempts"]) == ("CT1", 2, 0)
    assert "1.2.3.1" not in out
