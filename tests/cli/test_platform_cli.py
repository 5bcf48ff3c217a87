"""`clara-flow up`, `down`, `status` and `doctor` as real commands on real servers, whatever is killed meanwhile.

A start of Prefect takes seconds, so the tests share one data folder; each brings it into the state that it needs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pytest
from platform_fixture import CLARA_FLOW, clara_flow, command_environment, free_port, processes_below
from postgres_fixture import new_database, session_server
from waiting import eventually

from clara_flow.infra.postgres import EmbeddedPostgres
from clara_flow.records.owner import process_start
from clara_flow.services.platform import PlatformHandle, ensure_platform, look, take_down
from clara_flow.services.prefect_server import is_healthy
from clara_flow.services.state_file import PlatformState, ServiceStatus, StateFile
from clara_flow.settings import Settings, load_settings

START_WITHIN_S = 60


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A data folder whose platform the tests may kill."""
    settings = load_settings(data_dir=tmp_path_factory.mktemp("shared"), prefect_port=free_port())
    yield settings
    take_down(settings)
    assert processes_below(settings.data_dir) == []


@pytest.fixture
def running(shared: Settings) -> Settings:
    """The shared platform, up."""
    ensure_platform(shared)
    return shared


@pytest.fixture
def stopped(shared: Settings) -> Settings:
    """The shared platform, down."""
    take_down(shared)
    return shared


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Settings]:
    """A data folder that does not exist yet."""
    settings = load_settings(data_dir=tmp_path / "data", prefect_port=free_port())
    yield settings
    take_down(settings)
    assert processes_below(settings.data_dir) == []


@pytest.fixture
def external_database(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of an empty database on a server that is not the platform's."""
    return new_database(session_server(pytestconfig, tmp_path_factory))


def service(settings: Settings, name: str) -> ServiceStatus:
    return next(status for status in look(settings).services if status.name == name)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not process_start(pid))


def start(settings: Settings, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a shell does it."""
    return subprocess.Popen(
        [CLARA_FLOW, *arguments],
        env=command_environment(settings, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def press_ctrl_c(command: subprocess.Popen[str]) -> None:
    os.killpg(command.pid, signal.SIGINT)


# A platform that runs


def test_status_tells_address_state_and_log_of_every_service(platform: PlatformHandle) -> None:
    done = clara_flow(platform.settings, "status", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["up"] is True
    assert told["prefect_ui"] == f"http://127.0.0.1:{platform.settings.prefect_port}"
    services = {entry["name"]: entry for entry in told["services"]}
    assert list(services) == ["postgresql", "prefect", "pool"]
    assert services["prefect"]["address"] == platform.prefect_api_url
    with psycopg.connect(services["postgresql"]["address"]) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    for entry in services.values():
        assert entry["state"] == "running"
        assert Path(entry["log_file"]).is_file()
        assert process_start(entry["pid"])


def test_status_breaks_no_address_on_a_narrow_terminal(platform: PlatformHandle) -> None:
    done = clara_flow(platform.settings, "status", COLUMNS="40")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    for status in platform.state.services:
        assert any(line.endswith(f" {status.address}") for line in lines)
        assert any(line.endswith(f" {status.log_file}") for line in lines)
        assert any(line.startswith(status.name) and " running " in line for line in lines)


def test_a_second_up_finds_the_first(platform: PlatformHandle) -> None:
    before = [status.pid for status in look(platform.settings).services]
    for command in (["up"], ["up", "--detach"]):
        done = clara_flow(platform.settings, *command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("It runs already.\n")
    assert [status.pid for status in look(platform.settings).services] == before


def test_finding_a_platform_is_light(platform: PlatformHandle) -> None:
    script = """
import sys
from clara_flow.services.platform import ensure_platform
from clara_flow.settings import load_settings
heavy = {"prefect", "sqlalchemy", "alembic", "docker"}
print(ensure_platform(load_settings()).started_here, sorted(heavy & set(sys.modules)))
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=command_environment(platform.settings),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "False []\n"


def test_a_command_set_to_another_database_is_told(platform: PlatformHandle) -> None:
    url = "postgresql://me:correct-horse@other/records"
    done = clara_flow(platform.settings, "up", "--detach", CLARA_FLOW_DATABASE_URL=url)
    assert done.returncode == 4
    assert "this command is set to postgresql://me@other/records" in done.stderr
    assert "correct-horse" not in done.stderr
    assert look(platform.settings).is_up


def test_doctor_knows_our_own_port(platform: PlatformHandle) -> None:
    done = clara_flow(platform.settings, "doctor", "--json")
    told = {(finding["check"], finding["text"]) for finding in json.loads(done.stdout)["findings"]}
    assert ("platform", "is up") in told
    assert (f"port {platform.settings.prefect_port}", "is our own Prefect server's") in told


# Whoever is killed, the platform heals


def test_a_killed_prefect_server_is_started_again(running: Settings) -> None:
    before = service(running, "prefect")
    kill(before.pid)
    eventually(lambda: service(running, "prefect").restarts > before.restarts, within_s=30)
    eventually(lambda: look(running).is_up, within_s=START_WITHIN_S)
    assert service(running, "prefect").pid != before.pid
    assert is_healthy(service(running, "prefect").address)


def test_a_killed_worker_is_started_again(running: Settings) -> None:
    before = service(running, "pool")
    kill(before.pid)
    eventually(lambda: service(running, "pool").restarts > before.restarts, within_s=30)
    eventually(lambda: look(running).is_up, within_s=START_WITHIN_S)
    assert service(running, "pool").pid != before.pid


def test_a_killed_postgresql_is_started_again(running: Settings) -> None:
    before = service(running, "postgresql")
    kill(before.pid)
    eventually(lambda: service(running, "postgresql").restarts > before.restarts, within_s=30)
    eventually(lambda: look(running).is_up, within_s=START_WITHIN_S)
    with psycopg.connect(before.address) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_up_takes_over_from_a_killed_supervisor(running: Settings) -> None:
    before = {status.name: status.pid for status in look(running).services}
    kill(StateFile(running.data_dir).read().pid)
    left = look(running)
    assert {status.name: status.pid for status in left.services} == before
    assert {status.state for status in left.services} == {"unhealthy"}
    assert "`clara-flow up` takes over" in left.services[0].message
    done = clara_flow(running, "up", "--detach")
    assert done.returncode == 0, done.stderr
    assert service(running, "postgresql").pid == before["postgresql"]
    assert not process_start(before["prefect"] or 0)
    assert not process_start(before["pool"] or 0)
    assert look(running).is_up


def test_down_clears_what_a_killed_supervisor_left(running: Settings) -> None:
    """Also when nobody noted it, as when the supervisor is killed right after the start of a server."""
    file = StateFile(running.data_dir)
    kill(file.read().pid)
    file.path.unlink()
    assert {status.state for status in look(running).services} == {"unhealthy"}
    done = clara_flow(running, "down")
    assert (done.returncode, done.stdout) == (0, "Stopped.\n")
    assert processes_below(running.data_dir) == []
    assert {status.state for status in look(running).services} == {"stopped"}
    assert clara_flow(running, "down").stdout == "It was not running.\n"


# Starting and stopping


def test_two_ups_at_once_start_one_platform(platform: PlatformHandle, fresh: Settings) -> None:
    outside = {"CLARA_FLOW_PREFECT_API_URL": platform.prefect_api_url, "CLARA_FLOW_POOL": "another-installation"}
    commands = [start(fresh, "up", "--detach", **outside) for _ in range(3)]
    said = [command.communicate(timeout=START_WITHIN_S) for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0], said
    assert sorted(out.splitlines()[0] for out, _ in said) == ["It runs already.", "It runs already.", "Started."]
    assert clara_flow(fresh, "down").stdout == "Stopped.\n"
    assert processes_below(fresh.data_dir) == []
    assert not StateFile(fresh.data_dir).is_supervised()


@pytest.mark.parametrize("command", [["up"], ["up", "--detach"]])
def test_ctrl_c_while_it_starts_leaves_nothing(stopped: Settings, command: list[str]) -> None:
    process = start(stopped, *command)
    eventually(lambda: service(stopped, "prefect").state == "starting", within_s=20)
    press_ctrl_c(process)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err in {"", "clara-flow: interrupted\n"}
    assert processes_below(stopped.data_dir) == []
    assert not StateFile(stopped.data_dir).is_supervised()


def test_down_while_it_starts(stopped: Settings) -> None:
    up = start(stopped, "up", "--detach")
    eventually(lambda: service(stopped, "prefect").state == "starting", within_s=20)
    assert clara_flow(stopped, "down").stdout == "Stopped.\n"
    _, err = up.communicate(timeout=30)
    assert up.returncode == 4
    assert err == "clara-flow: the platform was stopped while it started, by `clara-flow down` or a signal\n"
    assert processes_below(stopped.data_dir) == []


def test_an_interrupted_ensure_platform_leaves_the_others_platform(platform: PlatformHandle) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    state = StateFile(platform.settings.data_dir)
    before = state.read()
    state.write(before.with_service(replace(before.services[1], state="unhealthy")))  # so that it has to wait
    try:
        with pytest.raises(KeyboardInterrupt):
            ensure_platform(platform.settings, on_progress=interrupt)
    finally:
        state.write(before)
    assert process_start(before.pid) == before.started
    assert is_healthy(platform.prefect_api_url)


# What stands in the way


def test_a_port_in_use_names_port_process_and_setting(fresh: Settings) -> None:
    with socket.create_server(("127.0.0.1", fresh.prefect_port)):
        done = clara_flow(fresh, "up", "--detach")
        examined = clara_flow(fresh, "doctor")
    name = psutil.Process().name()
    reason = f"port {fresh.prefect_port} on 127.0.0.1 is in use by {name} (pid {os.getpid()})"
    assert done.returncode == 4
    assert done.stderr == (
        f"clara-flow: Prefect: {reason}. Stop that program, or choose another port with CLARA_FLOW_PREFECT_PORT.\n"
    )
    assert processes_below(fresh.data_dir) == []
    assert reason in service(fresh, "prefect").message
    assert examined.returncode == 1
    assert reason in examined.stdout


def test_a_stranger_with_the_supervisors_process_id_is_left_alone(fresh: Settings) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        file = StateFile(fresh.data_dir)
        file.prepare()
        stale = ServiceStatus(name="prefect", address="http://127.0.0.1:1/api", state="running", pid=stranger.pid)
        file.write(PlatformState(pid=stranger.pid, started="another-boot:1", services=(stale,)))
        assert clara_flow(fresh, "status").returncode == 4
        assert clara_flow(fresh, "down").stdout == "It was not running.\n"
        assert stranger.poll() is None
        assert {status.state for status in look(fresh).services} == {"stopped"}
    finally:
        stranger.communicate(b"\n")


def test_a_data_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = load_settings(data_dir=tmp_path / "file" / "data", prefect_port=free_port())
    for command in (["up"], ["up", "--detach"]):
        done = clara_flow(settings, *command)
        assert done.returncode == 4
        assert "Not a directory" in done.stderr
        assert "set CLARA_FLOW_DATA_DIR to another folder" in done.stderr
    assert clara_flow(settings, "down").stdout == "It was not running.\n"
    examined = clara_flow(settings, "doctor")
    assert examined.returncode == 1
    assert "is no folder" in examined.stdout


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A tmpfs with the options given as parameter."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("mounted", ["ro"], indirect=True)
def test_a_read_only_data_folder(mounted: Path) -> None:
    settings = load_settings(data_dir=mounted, prefect_port=free_port())
    done = clara_flow(settings, "up", "--detach")
    assert done.returncode == 4
    assert f"cannot write below {mounted}: Read-only file system" in done.stderr
    examined = clara_flow(settings, "doctor")
    assert examined.returncode == 1
    assert "Read-only file system" in examined.stdout


@pytest.mark.parametrize("mounted", ["size=8m"], indirect=True)
def test_a_data_folder_that_runs_full_while_it_starts(mounted: Path) -> None:
    settings = load_settings(data_dir=mounted / "data", prefect_port=free_port())
    done = clara_flow(settings, "up", "--detach")
    assert done.returncode == 4
    assert "is full" in done.stderr
    assert "CLARA_FLOW_DATA_DIR" in done.stderr
    assert processes_below(mounted) == []
    assert "is full" in service(settings, "postgresql").message


@pytest.mark.parametrize("mounted", ["size=64k"], indirect=True)
def test_a_full_data_folder(mounted: Path) -> None:
    (mounted / "filler").write_bytes(b"\0" * (64 * 1024))
    settings = load_settings(data_dir=mounted, prefect_port=free_port())
    for command in (["up"], ["up", "--detach"]):
        done = clara_flow(settings, *command)
        assert done.returncode == 4
        assert f"the disk of {mounted} is full" in done.stderr
    examined = clara_flow(settings, "doctor")
    assert examined.returncode == 1
    assert "No space left on device" in examined.stdout


def test_a_data_folder_of_a_newer_version(fresh: Settings) -> None:
    file = StateFile(fresh.data_dir)
    file.prepare()
    file.path.write_text('{"version": 99, "unheard_of": true}')
    for command in (["up"], ["up", "--detach"], ["status"], ["down"]):
        done = clara_flow(fresh, *command)
        assert done.returncode == 4
        assert f"{file.path} is of version 99" in done.stderr
        assert "newer clara-flow" in done.stderr
    file.path.unlink()


def test_a_database_of_a_newer_version(fresh: Settings) -> None:
    server = EmbeddedPostgres(fresh.data_dir / "postgres", log_path=fresh.data_dir / "postgresql.log")
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999_newer')")
    done = clara_flow(fresh, "up", "--detach")
    assert done.returncode == 4
    assert "made by a newer version: install that one" in done.stderr
    assert "9999_newer" in done.stderr


# External services


def test_external_services_are_used_and_left_alone(
    platform: PlatformHandle, fresh: Settings, external_database: str
) -> None:
    outside = {
        "CLARA_FLOW_DATABASE_URL": external_database,
        "CLARA_FLOW_PREFECT_API_URL": platform.prefect_api_url,
        "CLARA_FLOW_POOL": "another-installation",
    }
    done = clara_flow(fresh, "up", "--detach", **outside)
    assert done.returncode == 0, done.stderr
    told = json.loads(clara_flow(fresh, "status", "--json", **outside).stdout)
    assert told["up"] is True
    assert [entry["external"] for entry in told["services"]] == [True, True, False]
    assert [entry["pid"] for entry in told["services"]][:2] == [None, None]
    assert told["prefect_ui"] == platform.prefect_ui_url
    assert not (fresh.data_dir / "postgres").exists()
    with psycopg.connect(external_database) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    assert clara_flow(fresh, "down", **outside).stdout == "Stopped.\n"
    assert is_healthy(platform.prefect_api_url)
    after = json.loads(clara_flow(fresh, "status", "--json", **outside).stdout)
    assert [entry["state"] for entry in after["services"]] == ["unknown", "unknown", "stopped"]


def test_up_in_the_foreground_on_an_external_postgresql_runs_until_ctrl_c(
    fresh: Settings, external_database: str
) -> None:
    prefect_database = external_database.replace("/test_", "/absent_")
    outside = {"CLARA_FLOW_DATABASE_URL": external_database, "CLARA_FLOW_PREFECT_DATABASE_URL": prefect_database}
    refused = clara_flow(fresh, "up", **outside)
    assert refused.returncode == 4
    assert "the database of the Prefect server cannot be used" in refused.stderr
    assert "CREATE DATABASE" in refused.stderr
    # Without the second address it is `prefect` on the same server, which this one has.
    command = start(fresh, "up", CLARA_FLOW_DATABASE_URL=external_database)
    assert command.stdout is not None
    assert any("Ctrl-C stops it." in line for line in command.stdout)
    assert look(fresh).is_up
    before, _, after = external_database.rpartition("?")
    with psycopg.connect(f"{before.rpartition('/')[0]}/prefect?{after}") as connection:
        assert connection.execute("SELECT to_regclass('flow_run') IS NOT NULL").fetchone() == (True,)
    press_ctrl_c(command)
    out, err = command.communicate(timeout=30)
    assert (command.returncode, out, err) == (0, "Stopped.\n", "")
    assert processes_below(fresh.data_dir) == []
    stopped = clara_flow(fresh, "status", CLARA_FLOW_DATABASE_URL=external_database)
    assert stopped.returncode == 4
    assert "postgresql  unknown" in stopped.stdout
    assert "prefect     stopped" in stopped.stdout


def test_external_services_that_do_not_answer(fresh: Settings) -> None:
    url = f"postgresql://me:correct-horse@127.0.0.1:{free_port()}/records"
    done = clara_flow(fresh, "up", "--detach", CLARA_FLOW_DATABASE_URL=url)
    assert done.returncode == 4
    assert "Connection refused" in done.stderr
    assert "CLARA_FLOW_DATABASE_URL" in done.stderr
    api = f"http://127.0.0.1:{free_port()}/api"
    quick = clara_flow(fresh, "up", "--detach", CLARA_FLOW_PREFECT_API_URL=api)
    assert quick.returncode == 4
    assert f"{api} does not answer" in quick.stderr
    assert "CLARA_FLOW_PREFECT_API_URL" in quick.stderr
    examined = clara_flow(fresh, "doctor", CLARA_FLOW_DATABASE_URL=url, CLARA_FLOW_PREFECT_API_URL=api)
    assert examined.returncode == 1
    assert f"{api} does not answer" in examined.stdout
    for text in (done.stderr, examined.stdout, (fresh.data_dir / "platform" / "state.json").read_text()):
        assert "correct-horse" not in text
    assert processes_below(fresh.data_dir) == []


def test_a_host_that_is_not_ours_is_a_wrong_setting(fresh: Settings) -> None:
    for host in ("203.0.113.7", "no-such-host.invalid"):
        done = clara_flow(fresh, "up", "--detach", CLARA_FLOW_HOST=host)
        assert done.returncode == 2, done.stderr
        assert "CLARA_FLOW_HOST" in done.stderr
        assert host in done.stderr
