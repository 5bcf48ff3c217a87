"""One attempt of one operator: told what it needs to know, launched, watched, at once or early and set going later."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from clara_flow.errors import OperatorError, OperatorFailed
from clara_flow.infra.fastio.volumes import FastIOVolume
from clara_flow.infra.launchers.base import Stop
from clara_flow.infra.launchers.spec import ExitReport, LaunchSpec, ResourceRequest
from clara_flow.plan import PlanOperator, expand_command, substitute_builtins
from clara_flow.records import jobs
from clara_flow.records.models import JobOperator
from clara_flow.tasks.early_io import EarlyFolders, say_go, take_back_go
from clara_flow.tasks.job_context import TIMED_OUT, JobContext
from clara_flow.tasks.operator_io import OperatorFolders, prepare_io

WATCH_FASTIO_EVERY_S = 0.25

OnLine = Callable[[str], None]


async def attempts_before(job: JobContext, operator: str) -> int:
    """How many attempts of an operator earlier runs of this job have made."""
    if not job.job.requeues:
        return 0
    rows: list[JobOperator] = await job.record(jobs.list_operators, job.engine, job.job.id)
    return next(row.attempt for row in rows if row.name == operator)


class EndedEarly(Exception):
    """What was prepared ended, somehow, before it read the go: it is as if it had never been started."""


class Attempt:
    """One attempt. Either `run` it; or `prepare` it before its inputs are sealed, then let it `go`, or `discard` it.

    number      counts over all runs of the job, from 1.
    """

    def __init__(self, job: JobContext, operator: PlanOperator, number: int) -> None:
        self.job = job
        self.operator = operator
        self.number = number
        self._stop = Stop()
        self._limit_s = 0.0
        self._told: list[str] = []
        self._on_line: OnLine = self._told.append
        self._overfull = False
        self._prepared: _Prepared | None = None

    async def run(self, request: ResourceRequest, gpus: tuple[str, ...], on_line: OnLine) -> ExitReport:
        """Launch it with its inputs there. Raises as `Launcher.run` does."""
        self._on_line = on_line
        return await self._launch(await self._folders(), request, gpus, limit_s=self._time_left())

    async def prepare(self, request: ResourceRequest) -> None:
        """Launch it; its driver prepares it and waits for the go. No GPU is visible to it, no time limit is its own."""
        folder = self.job.payload.control_folder(self.operator.name)
        remaps = self.job.launcher.runtime != "process"
        early = EarlyFolders(go=folder / "go", inputs=folder / "inputs" if remaps else None)
        folders = await self._folders(early)
        awaited = {n: folders.input(entry) for n, entry in enumerate(self.operator.inputs) if entry.upstream}
        descriptor = await asyncio.to_thread(early.make, tuple(awaited))
        self._prepared = _Prepared(early, descriptor, awaited)
        self._prepared.running = asyncio.create_task(self._launch(folders, request, (), limit_s=None))

    @property
    def is_prepared(self) -> bool:
        """Whether it was launched and waits for the go, or still prepares itself."""
        running = self._prepared.running if self._prepared is not None else None
        return running is not None and not running.done()

    async def go(self, gpus: tuple[str, ...], on_line: OnLine) -> ExitReport:
        """Its inputs are sealed: let it work. Its times are told from now on.

        Raises as `Launcher.run` does; EndedEarly.
        """
        prepared = self._prepared
        if prepared is None or prepared.running is None:
            raise RuntimeError("go comes after prepare")
        self._on_line = on_line
        for line in self._told:
            on_line(line)
        self._limit_s = self._time_left()
        timer = asyncio.get_running_loop().call_later(self._limit_s, self._stop.expire, self._limit_s)
        try:
            await asyncio.to_thread(prepared.early.fill, prepared.awaited)
            went = datetime.now(UTC)
            say_go(prepared.descriptor, gpus)
            return dataclasses.replace(await prepared.running, started=went)
        except OperatorError as error:
            if not self._stop.is_set() and take_back_go(prepared.descriptor):
                raise EndedEarly(str(error)) from None
            raise
        finally:
            timer.cancel()
            await self.discard()

    async def discard(self) -> None:
        """End what was prepared, and leave nothing of it. Safe to call twice."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return
        if prepared.running is not None:
            prepared.running.cancel()
            await asyncio.gather(prepared.running, return_exceptions=True)
        os.close(prepared.descriptor)
        await asyncio.to_thread(prepared.early.remove)

    def _time_left(self) -> float:
        """Seconds that it may work, beginning now."""
        left_s = self.job.seconds_left()
        return left_s if self.operator.timeout_s is None else min(self.operator.timeout_s, left_s)

    async def _folders(self, early: EarlyFolders | None = None) -> OperatorFolders:
        job, operator, payload = self.job, self.operator, self.job.payload
        names = [output.name for output in operator.outputs]
        return OperatorFolders(
            payload=payload.input,
            upstreams={upstream: payload.operator_folder(upstream) for upstream in operator.upstreams},
            output=await asyncio.to_thread(payload.open_outputs, operator.name, names, attempt=self.number),
            report=payload.report_folder(operator.name),
            manifest=payload.control_folder(operator.name) / "io.json",
            models={model.name: job.models[model.name] for model in operator.models},
            fastio=job.fastio.path if job.fastio is not None else None,
            early=early,
        )

    async def _launch(
        self, folders: OperatorFolders, request: ResourceRequest, gpus: tuple[str, ...], *, limit_s: float | None
    ) -> ExitReport:
        self._limit_s = limit_s or self.job.seconds_left()
        spec = self._spec(folders, request, gpus, limit_s)
        watchers = [asyncio.create_task(self._obey())]
        if self.job.fastio is not None and not self.job.fastio.hard:
            watchers.append(asyncio.create_task(self._watch(self.job.fastio)))
        try:
            return await self.job.launcher.run(spec, stop=self._stop, on_line=self._line)
        except OperatorError as error:
            raise await self._explained(error) from None
        finally:
            for watcher in watchers:
                watcher.cancel()

    def _spec(
        self, folders: OperatorFolders, request: ResourceRequest, gpus: tuple[str, ...], limit_s: float | None
    ) -> LaunchSpec:
        job, operator, settings = self.job, self.operator, self.job.settings
        io = prepare_io(operator, folders, job.identity, job.launcher.path_inside)
        builtins = job.identity.builtins(operator.name)
        command = tuple(substitute_builtins(word, builtins) for word in operator.container.command)
        command = expand_command(command, io.environment)
        resolved = job.catalog.resolve(operator.container.reference, command, job.launcher.runtime)
        return LaunchSpec(
            operator=operator.name,
            job_id=job.identity.job_id,
            attempt=self.number,
            image=resolved.image,
            command=resolved.command,
            environment=io.environment,
            mounts=io.mounts,
            outputs=io.outputs,
            request=request,
            gpu_devices=gpus,
            timeout_s=limit_s,
            grace_s=settings.stop_grace_s,
            cancel_grace_s=settings.cancel_grace_s,
            log_path=job.payload.log_path(operator.name),
            log_limit_bytes=settings.operator_log_limit_mib * 2**20,
            pull_policy=settings.image_pull_policy,
            registry_auth=job.registry_auth(operator.container.image),
        )

    def _line(self, line: str) -> None:
        self._on_line(line)

    async def _obey(self) -> None:
        """Hand the job's stop on, with its reason."""
        await self.job.stop.wait()
        if self.job.stop_reason == TIMED_OUT:
            self._stop.expire(self._limit_s)
        else:
            self._stop.set()

    async def _watch(self, volume: FastIOVolume) -> None:
        """Stop the operator when the job's volume, which nothing else limits, holds more than it may."""
        while not self._overfull:
            await asyncio.sleep(WATCH_FASTIO_EVERY_S)
            self._overfull = await asyncio.to_thread(volume.is_overfull)
        self._stop.set()

    async def _explained(self, error: OperatorError) -> OperatorError:
        """The error, or a better one when shared memory was the reason."""
        volume = self.job.fastio
        if volume is None:
            return error
        if self._overfull:
            reason = f"was stopped: the job's FastIO volume holds more than its {volume.size_mib} MiB"
        elif isinstance(error, OperatorFailed) and await asyncio.to_thread(volume.is_full):
            reason = f"{error.reason} when the job's FastIO volume of {volume.size_mib} MiB was full"
        else:
            return error
        return OperatorError(
            error.operator,
            f"{reason}; raise `fastio` of the pipeline",
            log_path=error.log_path,
            last_lines=error.last_lines,
            exit_code=error.facts.get("exit_code"),
        )


@dataclasses.dataclass(slots=True)
class _Prepared:
    """What `prepare` has made. `awaited`: where the inputs that are not there yet will lie, by their position."""

    early: EarlyFolders
    descriptor: int
    awaited: Mapping[int, Path]
    running: asyncio.Task[ExitReport] | None = None
