"""The supervisor's rules, on services that are quick to start and to break."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from platform_fixture import command_environment, processes_below
from postgres_fixture import new_database, session_server
from waiting import eventually

from clara_flow.errors import ServiceError
from clara_flow.infra.postgres import EmbeddedPostgres
from clara_flow.services import postgres
from clara_flow.services.service import Service
from clara_flow.services.state_file import PlatformState, ServiceStatus, StateFile
from clara_flow.services.supervisor import START_TRIES, Supervisor
from clara_flow.settings import Settings, load_settings

PREPARED = ["prepare first", "prepare second"]


class Flag(Service):
    """A service that is a file: it is alive while the file exists, and answers while the file is empty."""

    def __init__(self, name: str, folder: Path, story: list[str]) -> None:
        self.name = self.title = name
        self.address = name
        self.log_path = folder / f"{name}.log"
        self.file = folder / name
        self.story = story
        self.refusals = 0
        self.words = ""

    def prepare(self) -> None:
        """Note that it was asked, refuse an impossible one."""
        self.story.append(f"prepare {self.name}")
        if self.words == "impossible":
            raise ServiceError(self.title, "it is impossible", remedy="Change it.")

    def start(self) -> None:
        """Make the file, unless it is to be refused."""
        self.story.append(f"start {self.name}")
        if self.refusals:
            self.refusals -= 1
            raise ServiceError(self.title, "it is refused", remedy="Wait.")
        self.file.write_text(self.words)

    def is_alive(self) -> bool:
        """Whether the file exists."""
        return self.file.exists()

    def problem(self) -> str:
        """What the file says."""
        return self.file.read_text() if self.file.exists() else "it is gone"

    def end(self) -> bool:
        """Remove the file."""
        self.story.append(f"end {self.name}")
        ran = self.file.exists()
        self.file.unlink(missing_ok=True)
        return ran


class House:
    """A supervisor of two such services."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.story: list[str] = []
        self.first, self.second = (Flag(name, folder, self.story) for name in ("first", "second"))
        self.up: list[PlatformState] = []
        self.supervisor = Supervisor(settings, services=(self.first, self.second))

    def status(self, name: str) -> ServiceStatus:
        """As the file says."""
        return next(s for s in StateFile(self.settings.data_dir).read().services if s.name == name)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The supervisor at work in a thread, stopped afterwards."""
        thread = threading.Thread(target=self.supervisor.run, args=(self.up.append,))
        thread.start()
        try:
            eventually(lambda: self.up)
            yield
        finally:
            self.supervisor.stop.set()
            thread.join()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(load_settings(data_dir=tmp_path / "data", service_start_timeout_s=1.5), tmp_path)


def test_services_start_in_order_and_stop_in_reverse(house: House) -> None:
    with house.running():
        assert house.up[0].is_up
        assert house.status("first").state == "running"
    assert house.story == [*PREPARED, "start first", "start second", "end second", "end first"]
    assert {house.status(name).state for name in ("first", "second")} == {"stopped"}
    assert StateFile(house.settings.data_dir).read().pid == 0


def test_what_cannot_start_ends_what_had_started(house: House) -> None:
    house.second.refusals = START_TRIES
    with pytest.raises(ServiceError, match="second: it is refused"):
        house.supervisor.run(house.up.append)
    assert house.up == []
    assert house.story == [*PREPARED, "start first", *["start second"] * START_TRIES, "end second", "end first"]
    assert "it is refused" in house.status("second").message
    assert house.status("first").message == ""


def test_what_is_killed_during_its_start_is_started_again(house: House) -> None:
    house.second.words = "it is on its way"
    thread = threading.Thread(target=house.supervisor.run, args=(house.up.append,))
    thread.start()
    try:
        eventually(house.second.is_alive)
        house.second.words = ""
        house.second.file.unlink()
        eventually(lambda: house.up, within_s=20)
        assert house.status("second").state == "running"
        assert house.status("second").restarts == 1
    finally:
        house.supervisor.stop.set()
        thread.join()
    assert house.story.count("start second") == 2
    assert house.story.count("start first") == 1


def test_what_dies_at_every_start_is_told(house: House) -> None:
    start = house.second.start

    def die() -> None:
        start()
        house.second.file.unlink()

    house.second.start = die  # type: ignore[method-assign]
    with pytest.raises(ServiceError, match="second: it is gone"):
        house.supervisor.run(house.up.append)
    assert house.story.count("start second") == START_TRIES
    assert not house.first.is_alive()


def test_a_wrong_setting_of_the_last_is_told_before_the_first_starts(house: House) -> None:
    house.second.words = "impossible"
    with pytest.raises(ServiceError, match="second: it is impossible"):
        house.supervisor.run()
    assert "start first" not in house.story
    assert "it is impossible" in house.status("second").message


def test_what_does_not_answer_in_time_is_told(house: House) -> None:
    house.second.words = "it is silent"
    with pytest.raises(ServiceError, match=r"second: it is silent within 1.5 s.*SERVICE_START_TIMEOUT_S"):
        house.supervisor.run()
    assert not house.first.is_alive()


def test_what_dies_is_started_again_after_a_pause_that_grows(house: House) -> None:
    with house.running():
        house.second.refusals = 2
        house.second.file.unlink()
        eventually(lambda: house.status("second").message == "second: it is refused. Wait.", within_s=20)
        eventually(lambda: house.status("second").restarts == 3, within_s=20)
        eventually(lambda: house.status("second").state == "running", within_s=20)
        assert house.status("first").restarts == 0
    assert house.story.count("start second") == 4


def test_what_is_silent_for_too_long_is_ended_and_started_again(house: House) -> None:
    with house.running():
        house.second.file.write_text("it hangs")
        eventually(lambda: house.status("second").message == "it hangs", within_s=20)
        assert house.status("second").state == "unhealthy"
        eventually(lambda: house.status("second").restarts == 1, within_s=20)
        eventually(lambda: house.status("second").state == "running", within_s=20)
    started = ["start first", "start second", "end second", "prepare second", "start second"]
    assert house.story[:7] == [*PREPARED, *started]


def test_a_state_that_cannot_be_written_ends_nothing(house: House) -> None:
    state = StateFile(house.settings.data_dir)
    partial = state.path.with_suffix(".partial")
    with house.running():
        partial.mkdir()  # as a full disk, also for root
        house.second.file.write_text("it hangs")
        eventually(lambda: house.story.count("start second") == 1 and not house.supervisor.stop.is_set())
        house.second.file.write_text("")
        partial.rmdir()
        house.first.file.write_text("it hangs, too")
        eventually(lambda: house.status("first").message == "it hangs, too", within_s=20)
        assert house.second.is_alive()


def test_an_external_database_is_watched_and_not_restarted(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "theirs", log_path=tmp_path / "theirs.log", options={"fsync": "off"})
    server.start()
    try:
        settings = load_settings(
            data_dir=tmp_path / "data", database_url=server.url(), prefect_api_url="http://127.0.0.1:1/api"
        )
        house = House(settings, tmp_path)
        house.supervisor = Supervisor(settings, services=(postgres.service_of(settings),))
        with house.running():
            assert house.status("postgresql").external
            server.stop()
            eventually(lambda: house.status("postgresql").state == "unhealthy", within_s=20)
            assert "cannot be used" in house.status("postgresql").message
            assert not server.is_running()
            server.start()
            eventually(lambda: house.status("postgresql").state == "running", within_s=20)
            assert house.status("postgresql").restarts == 0
        assert server.is_running()
        assert house.status("postgresql").state == "unknown"
    finally:
        server.stop()


def test_an_account_that_may_make_no_tables_is_told(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    server = session_server(pytestconfig, tmp_path_factory)
    database = new_database(server)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN")
    url = database.replace("clara_flow@", "guest:correct-horse@")
    service = postgres.service_of(load_settings(data_dir=tmp_path, database_url=url))
    with pytest.raises(
        ServiceError, match=r"our tables cannot be made in .*permission denied for schema public"
    ) as told:
        service.start()
    assert "correct-horse" not in str(told.value)


def test_a_second_supervisor_does_nothing(house: House, tmp_path: Path) -> None:
    with house.running():
        second = House(house.settings, tmp_path)
        assert second.supervisor.run(second.up.append) is False
        assert second.story == []
        assert house.first.is_alive()


def test_a_stop_before_the_start_starts_nothing(house: House) -> None:
    house.supervisor.stop.set()
    assert house.supervisor.run(house.up.append) is True
    assert house.up == []
    assert "start first" not in house.story


@pytest.mark.parametrize("sent", [b"", pickle.dumps(load_settings())[:-20]])
def test_a_detached_supervisor_without_its_settings_does_nothing(tmp_path: Path, sent: bytes) -> None:
    """As when the command that started it was killed while it wrote them."""
    settings = load_settings(data_dir=tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-m", "clara_flow.services.detached"],
        input=sent,
        env=command_environment(settings, HOME=str(tmp_path)),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(tmp_path.iterdir()) == []
    assert processes_below(tmp_path) == []


def test_logs_that_grew_too_large_are_begun_anew(tmp_path: Path) -> None:
    house = House(load_settings(data_dir=tmp_path / "data", service_log_limit_mib=1), tmp_path)
    large = house.settings.data_dir / "logs" / "first.log"
    large.parent.mkdir(parents=True)
    large.write_bytes(b"line\n" * 2**19)
    with house.running():
        eventually(lambda: large.stat().st_blocks * 512 < 2**20)
    assert large.with_name("first.log.1").read_bytes().count(b"line\n") >= 2**19 - 4096
