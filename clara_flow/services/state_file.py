"""What the supervisor tells everybody else: which services there are, where, and how they are.

One JSON file, `<data_dir>/platform/state.json`, replaced as a whole, and a lock beside it that the supervisor holds for
as long as it lives: the lock says whether a supervisor runs, whatever the file says.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clara_flow.errors import ServiceError, StorageError

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """One service as others see it.

    state       starting, running, unhealthy (it does not answer, or is being restarted) or stopped.
    since       ISO 8601, UTC: when it got into this state.
    pid         None for a service that somebody else runs (external).
    started     start of that process (`records.owner.process_start`), so that no stranger is ever signalled.
    message     why it is not running, or what happened last.
    """

    name: str
    address: str
    state: str = "stopped"
    since: str = ""
    pid: int | None = None
    started: str = ""
    log_file: str = ""
    restarts: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformState:
    """The supervisor and its services. `error` is why it could not start them; facts are what it found out."""

    pid: int = 0
    started: str = ""
    host: str = ""
    prefect_api_url: str = ""
    prefect_ui_url: str = ""
    database_url: str = ""
    services: tuple[ServiceStatus, ...] = ()
    error: dict[str, Any] = field(default_factory=dict)

    @property
    def is_up(self) -> bool:
        """Whether every service runs."""
        return bool(self.services) and all(service.state == "running" for service in self.services)

    def with_service(self, status: ServiceStatus) -> PlatformState:
        """The same with one service replaced, or added at the end."""
        names = [service.name for service in self.services]
        if status.name not in names:
            return replace(self, services=(*self.services, status))
        return replace(self, services=tuple(status if s.name == status.name else s for s in self.services))


class StateFile:
    """The state of the platform that lives in one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "platform"
        self.path = self.folder / "state.json"
        self.lock_path = self.folder / "supervisor.lock"

    def prepare(self) -> None:
        """Make the folder and try to write there. Raises StorageError naming folder and reason."""
        data_dir = self.folder.parent
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"\0" * 4096)
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as error:
            raise StorageError(
                f"the data folder {data_dir} cannot be used: {error.strerror}. "
                "Free some space or choose another one with --data-dir or CLARA_FLOW_DATA_DIR."
            ) from None

    def read(self) -> PlatformState:
        """The last state written; an empty one when there is none. Raises ServiceError for a newer version's."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
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
        """Replace the state, so that a reader never sees half of one."""
        content = {"version": VERSION, **asdict(state)}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.chmod(0o600)
        partial.rename(self.path)

    def is_supervised(self) -> bool:
        """Whether a supervisor lives: it holds the lock, which no crash can leave held."""
        try:
            with self.lock_path.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextmanager
    def supervising(self) -> Iterator[bool]:
        """Hold the lock during the body; yields False when another supervisor holds it."""
        with self.lock_path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
