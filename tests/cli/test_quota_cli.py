"""`clara-flow quota` as users type it, on a real database."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgres_fixture import database_url  # noqa: F401

from clara_flow.cli import start
from clara_flow.records import quotas
from clara_flow.records.database import connect

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    database_url: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs `clara-flow quota ...`: exit status, stdout, stderr. No tenant has a quota at first."""
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE quotas"))
    engine.dispose()
    monkeypatch.setenv("CLARA_FLOW_DATABASE_URL", database_url)
    monkeypatch.setenv("CLARA_FLOW_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clara-flow", "quota", *arguments])
        with pytest.raises(SystemExit) as ended:
            start.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def stored(command: Command) -> list[dict[str, object]]:
    status, out, _ = command("list", "--json")
    assert status == 0
    return list(json.loads(out))


def test_without_quotas_everybody_may_use_everything(command: Command) -> None:
    assert stored(command) == []
    status, out, _ = command("list")
    assert status == 0
    assert "may use the whole pool" in out


def test_both_kinds_of_limits_are_set_shown_and_deleted(command: Command) -> None:
    options = ("--gpus", "2", "--max-gpus", "4", "--gpu-memory", "8192", "--max-cpu", "64", "--memory", "65536")
    assert command("set", "ward [7]", *options, "--max-jobs", "20", "--fastio", "0", "--weight", "2.5")[0] == 0
    expected = {
        "tenant": "ward [7]",
        "weight": 2.5,
        "nominal": {"gpu": 2, "gpu_memory_mib": 8192, "memory_mib": 65536, "fastio_mib": 0},
        "hard": {"gpu": 4, "cpu": 64, "jobs": 20},
    }
    assert stored(command) == [expected]
    _, table, _ = command("list")
    (row,) = (line for line in table.splitlines() if line.startswith("ward [7]"))
    assert row.split("  ")[0] == "ward [7]"
    assert [cell.strip() for cell in row.split("  ") if cell.strip()][1:] == [
        "2.5", "2 / 4", "8192 / -", "- / 64", "65536 / -", "- / 20", "0 / -"
    ]  # fmt: skip

    assert command("delete", "ward [7]")[:2] == (0, "the quota of ward [7] is deleted\n")
    assert stored(command) == []
    assert command("delete", "ward [7]")[:2] == (0, "ward [7] has no quota\n")


def test_what_is_not_named_stays_and_none_takes_away(command: Command) -> None:
    command("set", "research", "--gpus", "1", "--max-jobs", "10", "--weight", "0.5")
    for _ in range(2):  # again: the same
        assert command("set", "research", "--max-jobs", "none", "--max-gpus", "1")[0] == 0
        assert stored(command) == [{"tenant": "research", "weight": 0.5, "nominal": {"gpu": 1}, "hard": {"gpu": 1}}]
    command("set", "research", "--gpus", "none", "--max-gpus", "none")
    assert stored(command) == [{"tenant": "research", "weight": 0.5, "nominal": {}, "hard": {}}]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--gpus", "two"), "--gpus takes a number that is not negative, or \"none\"; found 'two'"),
        (("--max-cpu", "-1"), "--max-cpu takes a number"),
        (("--memory", "1.5"), "--memory takes a number"),
        (("--gpus", ""), "--gpus takes a number"),
        (("--weight", "0"), "--weight takes a number above 0"),
        (("--weight", "nan"), "--weight takes a number above 0"),
        (("--gpus", "5"), "lower --gpus or raise --max-gpus"),
        ((), "changes nothing without an option"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_remedy(
    command: Command, options: tuple[str, ...], complaint: str
) -> None:
    command("set", "ward-7", "--max-gpus", "4")
    before = stored(command)
    status, out, err = command("set", "ward-7", *options)
    assert (status, out) == (2, "")
    assert complaint in err
    assert stored(command) == before


def test_the_ledger_hears_of_it(command: Command, database_url: str) -> None:  # noqa: F811
    engine = connect(database_url)
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        raw.autocommit = True
        raw.execute(f"LISTEN {quotas.CHANNEL}")
        command("set", "ward-7", "--gpus", "1")
        heard = next(raw.notifies(timeout=5))
    engine.dispose()
    assert json.loads(heard.payload) == {"quota": "ward-7"}


def test_without_a_database_it_says_what_to_do(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CLARA_FLOW_DATABASE_URL")
    status, _, err = command("list")
    assert status == 4
    assert "clara-flow up" in err


@pytest.mark.parametrize("arguments", [(), ("set",), ("list",), ("delete",)])
def test_every_command_explains_itself_with_an_example(command: Command, arguments: tuple[str, ...]) -> None:
    status, out, _ = command(*arguments, "--help")
    assert status == 0
    assert "Example" in out
