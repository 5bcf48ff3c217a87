"""The driver: keeps an operator's life cycle and tells it its job, its inputs and its outputs.

    from clara_flow.operators.sdk import Driver

    def execute(driver, payload):
        volume = payload.input_entries["volume"].path
        ...
        return True

    if __name__ == "__main__":
        with Driver(execute_handler=execute):
            pass

Life cycle: prepare (inputs are not there yet: load models) -> execute (every input is ready) -> cleanup. A handler that
returns False or raises has failed; None counts as True. Cleanup runs in every case, also after a failure, the deadline,
SIGTERM or Ctrl-C. An operator may be started while those before it still run: then the driver waits between prepare and
execute, and no GPU is visible before execute.

Exit codes of the process: 0 fine, 1 a handler failed, 2 the driver could not do its part (bad manifest, missing
folder, report not writable), 3 the deadline was reached, 143 terminated by SIGTERM.
"""

from __future__ import annotations

import enum
import json
import os
import signal
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from clara_flow.operators.sdk import log
from clara_flow.operators.sdk.files import replace_file
from clara_flow.operators.sdk.go import wait_for_go
from clara_flow.operators.sdk.manifest import StageJob, check_inputs, load_job
from clara_flow.operators.sdk.payload import DriverError, Payload

PrepareHandler = Callable[["Driver"], bool | None]
ExecuteHandler = Callable[["Driver", Payload], bool | None]
CleanupHandler = Callable[["Driver"], bool | None]
NotificationHandler = Callable[["Driver", "Notification", str, str, bool], object]


class ExitCode(enum.IntEnum):
    """How the process ends."""

    OK = 0
    HANDLER_FAILED = 1
    DRIVER_ERROR = 2
    DEADLINE = 3
    TERMINATED = 128 + signal.SIGTERM


class Notification(enum.IntEnum):
    """What a notification handler is told; everything from HANDLER_FAILED on is fatal."""

    STARTED = 0
    COMPLETED = 1
    HANDLER_FAILED = 2
    DRIVER_ERROR = 3
    DEADLINE_REACHED = 4
    TERMINATED = 5


class _Stopped(BaseException):
    """Raised inside a handler by a signal. No Exception: a handler's own `except Exception` must not swallow it."""

    def __init__(self, code: ExitCode, notification: Notification, reason: str) -> None:
        super().__init__(reason)
        self.code, self.notification = code, notification


class Driver:
    """Runs an operator's handlers in order, in the thread that waits for completion.

    execute_handler       (driver, payload) -> bool | None
    prepare_handler       (driver) -> bool | None
    cleanup_handler       (driver) -> bool | None
    notification_handler  (driver, code, message, source, is_fatal); for debugging, its faults are logged only
    application_data      any object of the application, handed back as `driver.application_data`

    All handlers are optional. Three ways to run it, all alike: `with Driver(...): pass`; `driver.start()` and
    `driver.wait_for_completion()`, both of which end the process by SystemExit when the exit code is not 0; or
    `sys.exit(driver.run())`.

    The deadline and SIGTERM interrupt Python code of the main thread; a long call into C code ends first. In another
    thread the deadline is looked at between handlers only.
    """

    def __init__(
        self,
        execute_handler: ExecuteHandler | None = None,
        prepare_handler: PrepareHandler | None = None,
        cleanup_handler: CleanupHandler | None = None,
        notification_handler: NotificationHandler | None = None,
        application_data: Any = None,
    ) -> None:
        self._execute_handler = execute_handler
        self._prepare_handler = prepare_handler
        self._cleanup_handler = cleanup_handler
        self._notification_handler = notification_handler
        self._application_data = application_data
        self._job: StageJob | None = None
        self._exit_code: ExitCode | None = None

    @property
    def application_data(self) -> Any:
        """The application's own object, as given to the constructor; None when none was given."""
        return self._application_data

    @property
    def job_id(self) -> UUID:
        """Identity of the job; stand-alone a new one for each driver. Raises DriverError for a broken manifest."""
        return self._stage_job.job_id

    @property
    def job_name(self) -> str:
        """Name of the job; "stand-alone" without a platform."""
        return self._stage_job.job_name

    @property
    def stage_name(self) -> str:
        """The operator's name in the pipeline; stand-alone the script's name."""
        return self._stage_job.stage_name

    @property
    def deadline(self) -> datetime | None:
        """When the stage must have ended, UTC; None without a limit."""
        return self._stage_job.deadline

    @property
    def report_dir(self) -> Path | None:
        """Folder for facts that the platform reads; None stand-alone."""
        return self._stage_job.report_dir

    @property
    def models(self) -> Mapping[str, Path]:
        """Folder of each model that the platform has put in place, by the model's name."""
        return self._stage_job.models

    def report(self, name: str, facts: Mapping[str, Any]) -> Path | None:
        """Leave `facts` as `<report_dir>/<name>.json` for the platform; None when there is no report folder.

        Atomic, and the same facts give the same bytes. Raises DriverError when the folder cannot be written.
        """
        if self.report_dir is None:
            return None
        target = self.report_dir / f"{name}.json"
        text = json.dumps(facts, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
        try:
            self.report_dir.mkdir(parents=True, exist_ok=True)
            replace_file(target, text.encode())
        except OSError as problem:
            raise DriverError(f"report {target} cannot be written: {problem.strerror}") from None
        return target

    def start(self) -> None:
        """Find the job. Ends the process with exit code 2 when the manifest or a folder cannot be used."""
        if not self._find_job():
            raise SystemExit(ExitCode.DRIVER_ERROR)

    def wait_for_completion(self) -> None:
        """Run the life cycle to its end; ends the process when that was not well (see the exit codes above)."""
        if code := self.run():
            raise SystemExit(code)

    def run(self) -> int:
        """Run the life cycle, once, and return the exit code for the process. Ctrl-C is passed on after cleanup."""
        if self._exit_code is None:
            self._exit_code = self._live() if self._find_job() else ExitCode.DRIVER_ERROR
        return int(self._exit_code)

    def __enter__(self) -> Driver:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if kind is None:  # an error in the body abandons the stage
            self.wait_for_completion()

    @property
    def _stage_job(self) -> StageJob:
        if self._job is None:
            self._job = load_job(os.environ)
        return self._job

    def _find_job(self) -> bool:
        try:
            log.name_stage(self.stage_name)
        except DriverError as problem:
            self._notify(Notification.DRIVER_ERROR, str(problem), "driver")
            return False
        return True

    def _live(self) -> ExitCode:
        self._notify(Notification.STARTED, f"stage {self.stage_name} started", "driver")
        try:
            with _interruptions(self.deadline):
                code = self._work()
        except _Stopped as stop:
            code = stop.code
            self._notify(stop.notification, str(stop), "driver")
        finally:  # also on Ctrl-C, which goes on from here
            cleaned = self._call("cleanup", self._cleanup_handler)
        if code is ExitCode.OK:
            code = cleaned
        if code is ExitCode.OK:
            self._notify(Notification.COMPLETED, f"stage {self.stage_name} completed", "driver")
        return code

    def _work(self) -> ExitCode:
        job = self._stage_job
        if code := self._call("prepare", self._prepare_handler):
            return code
        if job.go is not None:
            log.info("prepared; waits for its inputs")
            try:
                wait_for_go(job.go)
                check_inputs(job)
            except DriverError as problem:
                self._notify(Notification.DRIVER_ERROR, str(problem), "driver")
                return ExitCode.DRIVER_ERROR
        if job.deadline is not None and datetime.now(UTC) >= job.deadline:
            raise _deadline_reached(job.deadline)
        return self._call("execute", self._execute_handler, Payload(job.inputs, job.outputs))

    def _call(self, role: str, handler: Callable[..., bool | None] | None, *arguments: Any) -> ExitCode:
        """How a handler went; an absent one is fine."""
        if handler is None:
            return ExitCode.OK
        try:
            answer = handler(self, *arguments)
            succeeded = answer is None or bool(answer)
            reason = f"{role} returned {answer!r}"
        except SystemExit as request:  # operators written as scripts leave by sys.exit
            succeeded = request.code in (None, 0)
            reason = f"{role} ended with exit status {request.code!r}"
        except DriverError as problem:
            self._notify(Notification.DRIVER_ERROR, str(problem), role)
            return ExitCode.DRIVER_ERROR
        except Exception as problem:  # noqa: BLE001 - whatever a handler raises is its failure, told with its traceback
            succeeded = False
            reason = f"{role} raised {type(problem).__name__}: {problem}\n{traceback.format_exc().rstrip()}"
        if succeeded:
            return ExitCode.OK
        self._notify(Notification.HANDLER_FAILED, reason, role)
        return ExitCode.HANDLER_FAILED

    def _notify(self, code: Notification, message: str, source: str) -> None:
        is_fatal = code >= Notification.HANDLER_FAILED
        (log.error if is_fatal else log.info)(message)
        if self._notification_handler is None:
            return
        try:
            self._notification_handler(self, code, message, source, is_fatal)
        except Exception:  # noqa: BLE001 - a fault in a debugging aid must not change the outcome
            log.warning(f"the notification handler failed\n{traceback.format_exc().rstrip()}")


def _deadline_reached(deadline: datetime) -> _Stopped:
    return _Stopped(
        ExitCode.DEADLINE, Notification.DEADLINE_REACHED, f"the deadline {deadline:%Y-%m-%dT%H:%M:%SZ} was reached"
    )


@contextmanager
def _interruptions(deadline: datetime | None) -> Iterator[None]:
    """Turn the deadline and SIGTERM into `_Stopped` in the main thread, so that cleanup runs before the process ends.

    Signals that the application handles itself are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_terminate(number: int, frame: types.FrameType | None) -> None:
        raise _Stopped(ExitCode.TERMINATED, Notification.TERMINATED, "terminated by SIGTERM")

    def on_alarm(number: int, frame: types.FrameType | None) -> None:
        assert deadline is not None  # noqa: S101 - the timer is set only with a deadline
        raise _deadline_reached(deadline)

    wanted: dict[signal.Signals, Callable[[int, types.FrameType | None], None]] = {signal.SIGTERM: on_terminate}
    if deadline is not None:
        wanted[signal.SIGALRM] = on_alarm
    ours = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, wanted[number])
        if deadline is not None and signal.SIGALRM in ours:
            left_s = (deadline - datetime.now(UTC)).total_seconds()
            signal.setitimer(signal.ITIMER_REAL, max(left_s, 1e-6))
        yield
    finally:
        if signal.SIGALRM in ours:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
