"""Who can be killed: the processes of one platform by the part that they play, and its containers."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from clara_flow.infra.launchers.supervise import MARK
from clara_flow.infra.pool.node import RUNNER_PROGRAM
from clara_flow.services.platform import look
from clara_flow.services.pool import PROGRAM as WORKER_PROGRAM
from clara_flow.services.prefect_server import PROGRAM as PREFECT_PROGRAM
from clara_flow.services.state_file import StateFile
from clara_flow.settings import Settings

OPERATOR_MODULE = "marking_operator"
JOB_VARIABLE = "CLARA_JOB_ID"


@dataclass(frozen=True, slots=True)
class Target:
    """One process, or container, that is about to be killed.

    job_id      of an operator, or of what stands between it and the platform.
    """

    part: str
    name: str
    kill: Callable[[], None]
    job_id: uuid.UUID | None = None


class Machine:
    """The processes of the platform of one data folder. `engine_api`: of its Docker engine."""

    def __init__(self, settings: Settings, engine_api: Any = None) -> None:
        self.settings = settings
        self.engine_api = engine_api
        self.finders: dict[str, Callable[[], Iterator[Target]]] = {
            "supervisor": self._supervisor,
            "postgres": self._postgres,
            "backend": self._backends,
            "prefect": lambda: self._programs("prefect", PREFECT_PROGRAM),
            "worker": lambda: self._programs("worker", WORKER_PROGRAM),
            "zygote": lambda: self._runners("zygote"),
            "runner": lambda: self._runners("runner"),
            "fork server": self._fork_servers,
            "operator supervisor": lambda: self._operators("operator supervisor"),
            "operator": lambda: self._operators("operator"),
            "container": self._containers,
        }

    def targets(self, part: str) -> list[Target]:
        """Those that live now."""
        return list(self.finders[part]())

    def kill_one(self, part: str, chance: random.Random) -> Target | None:
        """`kill -9` one of them; None when there is none."""
        targets = self.targets(part)
        if not targets:
            return None
        target = chance.choice(targets)
        try:
            target.kill()
        except psutil.NoSuchProcess:
            return None
        return target

    def _target(self, part: str, process: psutil.Process, job_id: uuid.UUID | None = None) -> Target:
        return Target(part, f"{part} {process.pid}", process.kill, job_id)  # psutil compares start times first

    def _supervisor(self) -> Iterator[Target]:
        state = StateFile(self.settings.data_dir).read()
        if state.names_a_process:
            yield self._target("supervisor", psutil.Process(state.pid))

    def _postmaster(self) -> psutil.Process | None:
        pid = next((service.pid for service in look(self.settings).services if service.name == "postgresql"), None)
        with suppress(psutil.Error):
            return psutil.Process(pid) if pid else None
        return None

    def _postgres(self) -> Iterator[Target]:
        if process := self._postmaster():
            yield self._target("postgres", process)

    def _backends(self) -> Iterator[Target]:
        """Connections of clients; the death of one makes the server throw out all others and recover."""
        postmaster = self._postmaster()
        if postmaster is None:
            return
        with suppress(psutil.Error):
            for child in postmaster.children():
                with suppress(psutil.Error):
                    if "clara_flow clara_flow" in " ".join(child.cmdline()):  # role and database
                        yield self._target("backend", child)

    def _ours(self) -> Iterator[tuple[psutil.Process, list[str]]]:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(
                    self.settings.data_dir
                ):
                    yield process, process.cmdline()

    def _programs(self, part: str, program: str) -> Iterator[Target]:
        for process, command in self._ours():
            if program in command:
                yield self._target(part, process)

    def _runners(self, part: str) -> Iterator[Target]:
        """A zygote has no threads, a runner has some; their command line is the same."""
        for process, command in self._ours():
            with suppress(psutil.Error):
                if RUNNER_PROGRAM in command and (process.num_threads() > 1) == (part == "runner"):
                    yield self._target(part, process)

    def _fork_servers(self) -> Iterator[Target]:
        for process, command in self._ours():
            if RUNNER_PROGRAM in command:
                with suppress(psutil.Error):
                    for child in process.children():
                        with suppress(psutil.Error):
                            if "supervise.serve()" in " ".join(child.cmdline()):
                                yield self._target("fork server", child)

    def _operators(self, part: str) -> Iterator[Target]:
        for process, command in self._ours():
            if _is_attempt(process) and (OPERATOR_MODULE in command) == (part == "operator"):
                with suppress(psutil.Error, KeyError, ValueError):
                    yield self._target(part, process, self._job_of(process))

    def _job_of(self, process: psutil.Process) -> uuid.UUID:
        """Of an operator by its environment; of what supervises it by its launcher's note."""
        environment = process.environ()
        if JOB_VARIABLE in environment:
            return uuid.UUID(environment[JOB_VARIABLE])
        note = self.settings.data_dir / "operators" / f"{environment[MARK]}.json"
        try:
            return uuid.UUID(json.loads(note.read_text())["job_id"])
        except OSError as error:
            raise KeyError(str(note)) from error

    def _containers(self) -> Iterator[Target]:
        from clara_flow.infra.launchers.docker import JOB_LABEL

        if self.engine_api is None:
            return
        for entry in self.engine_api.containers():
            if job := entry["Labels"].get(JOB_LABEL):
                identity = entry["Id"]
                yield Target(
                    "container", f"container {identity[:12]}", _Killing(self.engine_api, identity), uuid.UUID(job)
                )


@dataclass(frozen=True, slots=True)
class _Killing:
    api: Any
    identity: str

    def __call__(self) -> None:
        from docker.errors import APIError

        with suppress(APIError):  # it has ended by itself
            self.api.kill(self.identity, "SIGKILL")


def _is_attempt(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        mark = process.environ().get(MARK, "")
        return bool(mark.strip("0"))
    return False
