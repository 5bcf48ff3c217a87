"""What the supervisor tells everybody else: which services there are, where, and how they are.

One JSON file, `<data_dir>/platform/state.json`, replaced as a whole, and a lock beside it that the supervisor holds for
as long as it lives: the lock says whether a supervisor runs, whatever the file says. `down` holds it while it clears
away what a killed supervisor left, so that nobody starts meanwhile.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from clara_flow.errors import ServiceError, StorageError
from clara_flow.records.durable import naming_storage_problems
from clara_flow.records.owner import process_start

VERSION = 1
POLL_S = 0.05
LOCK_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One service as others see it.

    address     without its password.
    state       starting, running, unhealthy (it does not answer, or is being started again), stopped, or unknown (it
                is external, and nobody looks at it).
    since       ISO 8601, UTC: when it got into this state.
    pid         None for a service that somebody else runs (external).
    restarts    how often it was started again since the platform is up.
    message     why it is not running, or what happened last.
    """

    name: str
    address: str
    state: str = "stopped"
    since: str = ""
    external: bool = False
    pid: int | None = None
    log_file: str = ""
    restarts: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformState:
    """The supervisor and its services.

    pid, started    the supervisor's process and its start (`records.owner.process_start`), so that no stranger with
                    its process id is ever signalled.
    database_url    the records' database, without its password.
    """

    pid: int = 0
    started: str = ""
    prefect_api_url: str = ""
    prefect_ui_url: str = ""
    database_url: str = ""
    services: tuple[ServiceStatus, ...] = ()

    @property
    def is_up(self) -> bool:
        """Whether every service runs."""
        return bool(self.services) and all(service.state == "running" for service in self.services)

    @property
    def names_a_process(self) -> bool:
        """Whether the supervisor named here lives."""
        return bool(self.pid) and process_start(self.pid) == self.started

    def with_service(self, status: ServiceStatus) -> PlatformState:
        """The same with one service replaced."""
        return replace(self, services=tuple(status if s.name == status.name else s for s in self.services))


class StateFile:
    """The state of the platform that lives in one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.folder = data_dir / "platform"
        self.path = self.folder / "state.json"
        self.lock_path = self.folder / "supervisor.lock"

    def prepare(self) -> None:
        """Make the folders and try to write there.

        Raises StorageError naming folder and reason, ServiceError for the folder of a newer version.
        """
        with naming_storage_problems(self.data_dir):
            self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.folder, self.data_dir / "logs"):
                folder.mkdir(exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"\0" * 4096)
                probe.flush()
                os.fsync(probe.fileno())
        self.read()

    def read(self) -> PlatformState:
        """The last state written; an empty one when there is none.

        Raises ServiceError for a newer version's, StorageError for another user's.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except PermissionError:
            raise self._not_ours() from None
        except (OSError, ValueError):
            return PlatformState()
        version = content.pop("version", VERSION)
        if version != VERSION:
            raise ServiceError(
                "platform",
                f"{self.path} is of version {version}, this clara-flow knows version {VERSION}",
                remedy="The data folder belongs to a newer clara-flow: install that one, or use another --data-dir.",
            )
        services = tuple(ServiceStatus(**service) for service in content.pop("services", ()))
        return PlatformState(**content, services=services)

    def write(self, state: PlatformState) -> None:
        """Replace the state, so that a reader never sees half of one. Raises StorageError."""
        content = {"version": VERSION, **asdict(state)}
        partial = self.path.with_suffix(".partial")
        with naming_storage_problems(self.data_dir):
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            partial.chmod(0o600)
            partial.rename(self.path)

    def is_supervised(self) -> bool:
        """Whether a supervisor lives: it holds the lock, which no crash can leave held. Raises StorageError."""
        try:
            with self.lock_path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except PermissionError:
            raise self._not_ours() from None
        except OSError:
            return False
        return False

    @contextmanager
    def supervising(self, patience_s: float = LOCK_PATIENCE_S) -> Iterator[bool]:
        """Hold the lock during the body; yields False, without it, when a supervisor has it.

        A lock that somebody else holds, `down` or a glance at it, is waited for up to `patience_s`.
        """
        deadline = time.monotonic() + patience_s
        with naming_storage_problems(self.data_dir):
            lock = self.lock_path.open("ab")
        with lock:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if self.read().names_a_process or time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(POLL_S)
            yield True

    def _not_ours(self) -> StorageError:
        return StorageError(
            f"the data folder {self.data_dir} belongs to another user. "
            "Work as that user, or choose another folder with --data-dir or CLARA_FLOW_DATA_DIR."
        )
