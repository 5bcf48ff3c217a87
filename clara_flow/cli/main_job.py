"""The main job as a person at a terminal sees it: platform up, payload staged, operators running, results copied."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from clara_flow.cli.live_table import LiveTable
from clara_flow.cli.results import check_source, check_target, copy_results
from clara_flow.errors import StorageError
from clara_flow.services.platform import PlatformHandle, ensure_platform
from clara_flow.settings import Settings

if TYPE_CHECKING:
    from clara_flow.deployments.trigger import Compiled, House
    from clara_flow.deployments.watch import JobOutcome
    from clara_flow.records.models import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the user asked for: either a pipeline and its input, or a job to resume."""

    target: Path
    pipeline: str = ""
    source: Path | None = None
    resume: str = ""
    arguments: dict[str, str]
    timeout_s: int | None = None
    priority: str = "NORMAL"
    tenant: str | None = None
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A job that completed: its outcome, the files copied to the target, its page in the Prefect UI."""

    outcome: JobOutcome
    written: list[Path]
    page: str


def run_main_job(settings: Settings, console: Console, order: Order) -> Done:
    """Run the job to its end and copy its results out.

    The payload folder goes when the job completed (unless it shall be kept) or was interrupted; a failed job's stays,
    so that it can be resumed. Raises JobFaulted, KeyboardInterrupt (nothing is left then), StorageError when the
    results cannot be copied (they stay in the payload), and what `create_job` raises.
    """
    compiled = None
    if not order.resume:
        compiled = _compile(settings, console, order)
    if order.source is not None:
        check_source(order.source)
    existed = order.target.exists()
    check_target(order.target, order.source)
    try:
        with terminating_like_ctrl_c(), platform_for(settings, console) as platform:
            return _run(settings, platform, console, order, compiled)
    finally:
        if not existed:
            with suppress(OSError):  # stays when there is something in it
                order.target.rmdir()


def _run(
    settings: Settings, platform: PlatformHandle, console: Console, order: Order, compiled: Compiled | None
) -> Done:
    from clara_flow.deployments.trigger import House
    from clara_flow.infra.images.catalog import installed
    from clara_flow.records import jobs
    from clara_flow.records.database import connect
    from clara_flow.records.state_machine import JobState

    house = House(
        settings=settings,
        engine=connect(platform.database_url),
        catalog=installed(settings.catalogs),
    )
    job = _create(house, console, order, compiled)
    try:
        return watch_job(platform, house, job, console, order)
    except KeyboardInterrupt:
        if jobs.cancel_job(house.engine, job.id, reason="interrupted").state is JobState.STOPPED:
            _remove_payload(house, job)  # else something works in it still; housekeeping removes it
        raise


def watch_job(platform: PlatformHandle, house: House, job: Job, console: Console, order: Order) -> Done:
    """Run the job and copy its results out. An interruption raises KeyboardInterrupt until the results are in place."""
    from clara_flow.deployments.watch import JobWatch
    from clara_flow.records.state_machine import JobStatus

    watch = JobWatch(house, job.id)
    with LiveTable(f"{job.name} ({job.id})", console) as show, _signals(lambda: watch.cancel("interrupted")):
        outcome = watch.follow(show, _model_progress(console))
    if outcome.job.status is JobStatus.CANCELED:
        raise KeyboardInterrupt
    run_id = outcome.job.flow_run_id  # None where Prefect has not answered yet
    page = f"{platform.prefect_ui_url}/runs" + (f"/flow-run/{run_id}" if run_id else "")
    if outcome.job.status is not JobStatus.HEALTHY:
        console.print(f"The run:    {page}", soft_wrap=True, markup=False)
        resume = f"clara-flow run --resume {job.id} --output {order.target}"
        console.print(f"Go on with: {resume}", soft_wrap=True, markup=False)
        outcome.raise_for_status()
    try:
        written = copy_results(outcome.results, order.target, before_publishing=no_way_back)
    except StorageError as error:
        raise StorageError(f"{error}. They are kept in {outcome.payload.path / 'operators'}") from None
    if not order.keep and not _is_awaited(house, job):
        _remove_payload(house, job)
    return Done(outcome=outcome, written=written, page=page)


def _is_awaited(house: House, job: Job) -> bool:
    """Whether files of it are still to be delivered; the clean-up after deliveries removes it then."""
    from clara_flow.records import deliveries
    from clara_flow.records.dicom_models import DeliveryState

    unfinished = {DeliveryState.PENDING, DeliveryState.IN_PROGRESS}
    return any(row.state in unfinished for row in deliveries.list_deliveries(house.engine, job_id=str(job.id)))


def _remove_payload(house: House, job: Job) -> None:
    from clara_flow.records import payloads

    house.store.remove(job.payload_id)
    payloads.mark_removed(house.engine, job.payload_id)


def _compile(settings: Settings, console: Console, order: Order) -> Compiled:
    """The definition, before anything is started: nobody shall wait for a platform to learn of a typing error."""
    from clara_flow.deployments.pipelines import find_definition
    from clara_flow.deployments.trigger import compile_definition

    compiled = compile_definition(settings, find_definition(order.pipeline), order.arguments)
    for warning in compiled.warnings:
        console.print(warning, markup=False, highlight=False, soft_wrap=True)
    return compiled


def _create(house: House, console: Console, order: Order, compiled: Compiled | None) -> Job:
    from clara_flow.deployments.trigger import create_job, resume_job
    from clara_flow.records.state_machine import JobPriority

    if compiled is None or order.source is None:
        return resume_job(house, order.resume, timeout_s=order.timeout_s)
    with Progress(
        TextColumn("Taking the input"), BarColumn(), DownloadColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=None)
        return create_job(
            house,
            compiled,
            source=order.source,
            runtime=house.settings.runtime,
            timeout_s=order.timeout_s,
            priority=JobPriority(order.priority),
            tenant=order.tenant,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _model_progress(console: Console) -> Callable[[str, float, str], None]:
    """Say each step of making a model once; the live table is on the screen, so a second bar has no room."""
    said: set[str] = set()

    def tell(model: str, done: float, message: str) -> None:
        if message not in said:
            said.add(message)
            console.print(f"  model {model}: {done:4.0%} {message}", markup=False, highlight=False, soft_wrap=True)

    return tell


@contextmanager
def platform_for(settings: Settings, console: Console) -> Iterator[PlatformHandle]:
    """The running platform, started when there is none. An interrupted job stops what it started."""
    import os

    with console.status("Looking for the platform") as status:
        platform = ensure_platform(settings, on_progress=status.update)
    if platform.started_here:
        console.print(
            "The platform was started in the background; `clara-flow down` stops it.", markup=False, highlight=False
        )
    os.environ.update(platform.prefect_environment)  # Prefect reads it when it is imported, which is after this
    try:
        yield platform
    except KeyboardInterrupt:
        if platform.started_here:
            platform.stop()
        raise


@contextmanager
def terminating_like_ctrl_c() -> Iterator[None]:
    """SIGTERM ends this process as tidily as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is interrupt:
            signal.signal(signal.SIGTERM, before)


def no_way_back() -> None:
    """From here on the job is a success, and a Ctrl-C that comes too late must not call it interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _signals(cancel: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM cancels the job and waits for its end; the second ends this process at once."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        cancel()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(console: Console, done: Done) -> None:
    """Say where the results are."""
    job = done.outcome.job
    took = (job.stopped - job.started).total_seconds() if job.started and job.stopped else 0.0
    console.print(f"Completed in {took:.1f} s. Results:", markup=False, highlight=False)
    for path in done.written:
        console.print(f"  {path}", markup=False, highlight=False, soft_wrap=True)
    for operator, delivery in done.outcome.deliveries.items():
        console.print(
            f"Registered by {operator}: {len(delivery['uris'])} file(s) for agent {delivery['agent']}",
            markup=False,
            highlight=False,
        )
    console.print(f"The run:    {done.page}", markup=False, highlight=False, soft_wrap=True)


def as_json(done: Done) -> dict[str, Any]:
    """The same for programs."""
    job = done.outcome.job
    return {
        "job_id": str(job.id),
        "payload_id": str(job.payload_id),
        "name": job.name,
        "state": job.state,
        "status": job.status,
        "started": job.started.isoformat() if job.started else None,
        "stopped": job.stopped.isoformat() if job.stopped else None,
        "operators": [
            {
                "name": row.name,
                "state": row.detail,
                "waited_s": row.waited_s,
                "run_time_s": row.run_time_s,
                "peak_memory_bytes": row.peak_memory_bytes,
                "exit_code": row.exit_code,
            }
            for row in done.outcome.operators
        ],
        "files": [str(path) for path in done.written],
        "deliveries": done.outcome.deliveries,
        "prefect_ui": done.page,
    }
