"""Start, find and stop the embedded PostgreSQL."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psutil

from clara_flow.errors import PlatformError, ServiceError, StorageError
from clara_flow.infra.postgres.account import Account
from clara_flow.infra.postgres.binaries import find_binaries

DATABASES = ("clara_flow", "prefect")
ROLE = "clara_flow"
PORT = 5432  # names the socket file only: there is no TCP
SOCKET_PATH_LIMIT = 107  # sun_path of unix(7), less its closing NUL
POLL_S = 0.01
RECOVERY_POLL_S = 0.1
FAST_STOP_S = 20.0

# Statements are never logged: they may carry what the log must not know.
SERVER_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}


class EmbeddedPostgres:
    """One PostgreSQL server with its data, reachable over a Unix socket that only its owner (and root) can open.

    data_dir    folder of its own, usually `<settings.data_dir>/postgres`: holds `data/` and `socket/`. Made if missing.
    bin_dir     folder with initdb and postgres (`settings.postgres_bin_dir`); None: a system installation's, else
                the wheel's.
    log_path    file that takes the server's log (appended).
    timeout_s   how long start (crash recovery included) and stop may take.
    options     more server settings (`-c name=value`), for tests and tuning.

    The server is no child that dies with its starter: it runs on, in a session of its own, until `stop`, which any
    process may call. It survives `kill -9` (PostgreSQL recovers at the next start). All methods are safe to repeat
    and safe against other processes doing the same at once.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        bin_dir: Path | None = None,
        log_path: Path,
        timeout_s: float = 120,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.expanduser().resolve()  # one name for one folder: locks and marks depend on it
        self.log_path = log_path.expanduser().absolute()
        self.timeout_s = timeout_s
        self._bin_dir = bin_dir
        self._options = {**SERVER_OPTIONS, **(options or {})}

    @property
    def cluster(self) -> Path:
        """PostgreSQL's own data folder."""
        return self.data_dir / "data"

    @property
    def socket_dir(self) -> Path:
        """Folder of the socket: in the data folder, or in /tmp where that path is too long for a socket.

        Not in XDG_RUNTIME_DIR: it vanishes at log-out, and the server does not.
        """
        folder = self.data_dir / "socket"
        if len(os.fsencode(folder / f".s.PGSQL.{PORT}.lock")) <= SOCKET_PATH_LIMIT:
            return folder
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path("/tmp") / f"clara-flow-{digest}"  # noqa: S108 - owner and mode are checked before use

    @property
    def pid(self) -> int | None:
        """Process id of the running server; None when it is not running."""
        process = self._postmaster()
        return process.pid if process else None

    def is_running(self) -> bool:
        """Whether a server runs on this data folder, whoever started it."""
        return self._postmaster() is not None

    def url(self, database: str = "clara_flow", *, driver: Literal["psycopg", "asyncpg"] | None = None) -> str:
        """Address of a database: for libpq by default, for SQLAlchemy with a driver named."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{ROLE}@/{database}?host={quote(str(self.socket_dir), safe='/')}&port={PORT}"

    def start(self) -> bool:
        """Make the cluster if there is none, start the server, wait until it answers and has our databases.

        Returns whether this call started it (False: it ran already). Raises ServiceError, StorageError.
        """
        with naming_disk_problems(self.data_dir), self._lock():
            started = self._postmaster() is None
            if started:
                self._start()
            self._create_databases()
            return started

    def stop(self) -> bool:
        """Stop the server (open transactions are rolled back). Returns whether it had been running.

        Raises ServiceError when it does not end in time.
        """
        if not self.cluster.exists():
            return False
        with naming_disk_problems(self.data_dir), self._lock():
            postmaster = self._postmaster()
            if postmaster is None:
                return False
            # "Fast" shutdown, for which a server that recovers from a crash may wait for ever; then "immediate", after
            # which the next start recovers.
            for request, limit_s in (
                (signal.SIGINT, min(FAST_STOP_S, self.timeout_s)),
                (signal.SIGQUIT, self.timeout_s),
            ):
                with contextlib.suppress(psutil.NoSuchProcess):
                    postmaster.send_signal(request)
                if self._wait_for_end(postmaster, limit_s):
                    return True
            raise self._problem(f"it does not stop (process {postmaster.pid})", remedy="End that process by hand.")

    def _wait_for_end(self, postmaster: psutil.Process, limit_s: float) -> bool:
        """Whether it ended in time. A zombie has ended: its parent, another process, has not noticed yet."""
        deadline = time.monotonic() + limit_s
        while self._postmaster() == postmaster:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One start or stop at a time, across processes."""
        self._account().make_folder(self.data_dir)
        with (self.data_dir / "starter.lock").open("ab") as file:
            deadline = time.monotonic() + self.timeout_s
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise self._problem(
                            f"another process has been starting or stopping it for {self.timeout_s:g} s",
                            remedy="Look for a hanging clara-flow process.",
                        ) from None
                    time.sleep(POLL_S)
            yield

    def _account(self) -> Account:
        return Account.of_cluster(self.cluster)

    def _problem(self, reason: str, *, remedy: str) -> ServiceError:
        return ServiceError("PostgreSQL", reason, remedy=remedy, log_path=str(self.log_path))

    @property
    def _mark(self) -> str:
        """Name of the cluster, which PostgreSQL puts on the command line or title of each of its processes."""
        return f"clara-flow-{hashlib.sha256(os.fsencode(self.cluster)).hexdigest()[:16]}"

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether it is a live process of this cluster's server, and no stranger with a dead server's process id."""
        try:
            command = " ".join(process.cmdline())  # a zombie has none
        except psutil.Error:
            return False
        return f"cluster_name={self._mark}" in command or command.startswith(f"postgres: {self._mark}: ")

    def _postmaster(self) -> psutil.Process | None:
        """The main process, when `postmaster.pid` names one that lives and is ours."""
        try:
            pid = int((self.cluster / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
            process = psutil.Process(pid)
        except (OSError, ValueError, psutil.Error):
            return None
        return process if self._is_ours(process) else None

    def _start(self) -> None:
        account = self._account()
        version_file = self.cluster / "PG_VERSION"
        major = int(version_file.read_text(encoding="ascii")) if version_file.exists() else None
        binaries = find_binaries(self._bin_dir, account, cluster_major=major)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if major is None:
            self._make_cluster(account, binaries.folder)
        self._clear_remains()
        self._make_socket_dir(account)

        options = {**self._options, "unix_socket_directories": str(self.socket_dir), "port": str(PORT)}
        options["cluster_name"] = self._mark
        settings = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        server = binaries.folder / "postgres"
        command = account.command(
            server, "-D", self.cluster, *settings, reaching=(server, self.cluster, self.socket_dir)
        )
        with self.log_path.open("ab") as log_file:
            log_start = log_file.tell()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                cwd="/",
                env={"LC_ALL": "C", "TZ": "UTC"},  # nothing of the user's PG* variables
                start_new_session=True,
            )
        self._wait_until_ready(child, log_start)
        # Whoever stops the server, our process must bury its child.
        threading.Thread(target=child.wait, name="postgres-reaper", daemon=True).start()

    def _wait_until_ready(self, child: subprocess.Popen[bytes], log_start: int) -> None:
        deadline = time.monotonic() + self.timeout_s
        while not self._is_ready(child.pid):
            if child.poll() is not None:
                raise self._start_problem(log_start)
            if time.monotonic() > deadline:
                child.send_signal(signal.SIGQUIT)
                child.wait()
                raise self._problem(
                    f"it was not ready within {self.timeout_s:g} s",
                    remedy="Raise CLARA_FLOW_SERVICE_START_TIMEOUT_S if it recovers from a crash.",
                )
            time.sleep(POLL_S)

    def _is_ready(self, pid: int) -> bool:
        """Whether `postmaster.pid` is that process's and its eighth line says so (since PostgreSQL 10)."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _start_problem(self, log_start: int) -> PlatformError:
        with self.log_path.open("rb") as file:
            file.seek(log_start)
            text = file.read().decode(errors="replace")
        if "No space left on device" in text:
            return disk_full(self.data_dir)
        fatal = [line for line in text.splitlines() if "FATAL:" in line or "PANIC:" in line]
        reason = (fatal or text.splitlines() or ["it ended without a word"])[-1]
        return self._problem(
            f"it does not start: {reason.split('FATAL:')[-1].strip()}", remedy="Mend that and start again."
        )

    def _make_cluster(self, account: Account, bin_dir: Path) -> None:
        """`initdb`, under another name until it is whole."""
        partial = self.data_dir / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if self.cluster.exists() and any(self.cluster.iterdir()):
            raise self._problem(
                f"{self.cluster} is not empty and holds no PostgreSQL data",
                remedy="Choose another CLARA_FLOW_DATA_DIR.",
            )
        account.make_folder(partial)
        initdb = bin_dir / "initdb"
        command = account.command(
            initdb, "-D", partial, "-U", ROLE, "--encoding=UTF8", "--locale=C", "--auth=trust", "--no-instructions",
            reaching=(initdb, partial),
        )  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", env={"LC_ALL": "C", "TZ": "UTC"}, check=False
        )
        with self.log_path.open("a", encoding="utf-8") as log_file:
            log_file.write(done.stdout + done.stderr)
        if done.returncode != 0:
            shutil.rmtree(partial, ignore_errors=True)
            if "No space left on device" in done.stderr:
                raise disk_full(self.data_dir)
            lines = [line for line in done.stderr.splitlines() if "error:" in line or "FATAL:" in line]
            reason = (lines or ["no reason given"])[0].split("error:")[-1].strip()
            raise self._problem(f"initdb failed: {reason}", remedy="Mend that and start again.")
        partial.rename(self.cluster)

    def _clear_remains(self) -> None:
        """After a crash: wait for the dead server's children, then take away its pid file and its socket's.

        PostgreSQL would refuse to start when another process has got the dead server's id in the meantime, or while
        nobody has buried the dead server.
        """
        deadline = time.monotonic() + self.timeout_s
        while remains := [process for process in psutil.process_iter() if self._is_ours(process)]:
            if time.monotonic() > deadline:
                pids = ", ".join(str(process.pid) for process in remains)
                raise self._problem(
                    f"processes of an earlier server still use {self.cluster} ({pids})", remedy="End them by hand."
                )
            time.sleep(POLL_S)
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)
        (self.socket_dir / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)

    def _make_socket_dir(self, account: Account) -> None:
        folder = self.socket_dir
        if folder.parent != self.data_dir and os.path.lexists(folder):  # in /tmp anybody may have made it
            entry = folder.lstat()
            if folder.is_symlink() or entry.st_uid not in {account.uid, os.geteuid()}:
                raise self._problem(f"{folder}, its socket's folder, is not ours", remedy="Remove it.")
        account.make_folder(folder)

    def _create_databases(self) -> None:
        """Wait until the server answers (one that recovers from a crash does not yet), see to our databases."""
        import psycopg

        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=10) as connection:
                    present = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
                    for name in DATABASES:
                        if name not in present:
                            connection.execute(f'CREATE DATABASE "{name}"')
                return
            except psycopg.OperationalError as error:
                if self._postmaster() is None or time.monotonic() > deadline:
                    raise self._problem(
                        f"it runs but does not answer: {str(error).strip()}",
                        remedy="Stop it (`clara-flow down`) and start again.",
                    ) from None
                time.sleep(RECOVERY_POLL_S)


def disk_full(folder: Path) -> StorageError:
    """The error for a data folder without space."""
    return StorageError(
        f"the disk of {folder} is full: PostgreSQL needs about 100 MiB there. Make space, "
        "or set CLARA_FLOW_DATA_DIR to a larger disk.",
        path=str(folder),
    )


@contextlib.contextmanager
def naming_disk_problems(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals below `folder` into StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise disk_full(folder) from None
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}:
            raise StorageError(
                f"the data folder {folder} cannot be used: {error.strerror} ({error.filename}). "
                "Make it writable for this user, or set CLARA_FLOW_DATA_DIR to another.",
                path=str(folder),
            ) from None
        raise
