"""The driver's life cycle: order, outcomes, exit codes, interruptions, and every property."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_flow.operators.sdk import Driver, DriverError, Notification, Payload

JOB_ID = "6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11"
VARIABLES = (
    "CLARA_IO_MANIFEST",
    "CLARA_REPORT_DIR",
    "CLARA_STAGE_NAME",
    "CLARA_JOB_ID",
    "CLARA_JOB_NAME",
    "NVIDIA_CLARA_INPUT",
    "NVIDIA_CLARA_OUTPUT",
)


@pytest.fixture(autouse=True)
def stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No platform around the test."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A manifest that the driver will find; `write_manifest` puts changes into place."""
    (tmp_path / "in").mkdir()
    document = {
        "job_id": JOB_ID,
        "job_name": "liver 17",
        "stage": "liver",
        "inputs": [{"name": "volume", "from": "reader", "path": str(tmp_path / "in")}],
        "outputs": [{"name": "mask", "path": str(tmp_path / "out")}],
        "report_dir": str(tmp_path / "report"),
        "models": {"net": str(tmp_path / "net")},
    }
    monkeypatch.setenv("CLARA_IO_MANIFEST", str(tmp_path / "manifest.json"))
    write_manifest(document)
    return document


def write_manifest(document: dict[str, Any], **changes: object) -> None:
    Path(os.environ["CLARA_IO_MANIFEST"]).write_text(json.dumps(document | changes))


def utc(seconds_from_now: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).isoformat()


class Recorder:
    """Handlers that write down what they are called with; `answers` are returned, or raised where they are errors."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers
        self.calls: list[str] = []
        self.notes: list[tuple[Notification, str, bool]] = []
        self.payload: Payload | None = None

    def _answer(self, role: str) -> Any:
        self.calls.append(role)
        answer = self.answers.get(role, True)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def prepare(self, driver: Driver) -> bool | None:
        return self._answer("prepare")

    def execute(self, driver: Driver, payload: Payload) -> bool | None:
        self.payload = payload
        return self._answer("execute")

    def cleanup(self, driver: Driver) -> bool | None:
        return self._answer("cleanup")

    def notify(self, driver: Driver, code: Notification, message: str, source: str, is_fatal: bool) -> None:
        self.notes.append((code, source, is_fatal))
        self._answer("notification") if "notification" in self.answers else None

    def driver(self, *, without: tuple[str, ...] = ()) -> Driver:
        handlers = {"execute": self.execute, "prepare": self.prepare, "cleanup": self.cleanup}
        return Driver(
            notification_handler=self.notify,
            **{f"{role}_handler": handler for role, handler in handlers.items() if role not in without},  # type: ignore[arg-type]
        )


def test_handlers_run_in_order_and_once() -> None:
    recorder = Recorder()
    driver = recorder.driver()
    assert driver.run() == driver.run() == 0
    assert recorder.calls == ["prepare", "execute", "cleanup"]
    assert recorder.notes == [(Notification.STARTED, "driver", False), (Notification.COMPLETED, "driver", False)]


@pytest.mark.parametrize("absent", [("prepare",), ("execute",), ("cleanup",), ("prepare", "execute", "cleanup")])
def test_every_handler_may_be_absent(absent: tuple[str, ...]) -> None:
    recorder = Recorder()
    assert recorder.driver(without=absent).run() == 0
    assert recorder.calls == [role for role in ("prepare", "execute", "cleanup") if role not in absent]
    assert Driver().run() == 0


ANSWERS = st.sampled_from([True, None, 1, False, 0, ValueError("x"), SystemExit(0), SystemExit(), SystemExit(3)])


def is_fine(answer: object) -> bool:
    if isinstance(answer, SystemExit):
        return answer.code in (None, 0)
    return answer is None or (not isinstance(answer, Exception) and bool(answer))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prepare=ANSWERS, execute=ANSWERS, cleanup=ANSWERS)
def test_one_failure_fails_the_stage_and_cleanup_always_runs(prepare: Any, execute: Any, cleanup: Any) -> None:
    recorder = Recorder(prepare=prepare, execute=execute, cleanup=cleanup)
    called = [prepare, execute, cleanup] if is_fine(prepare) else [prepare, cleanup]
    assert recorder.driver().run() == (0 if all(map(is_fine, called)) else 1)
    assert recorder.calls == (["prepare", "execute", "cleanup"] if is_fine(prepare) else ["prepare", "cleanup"])
    fatal = [code for code, _, is_fatal in recorder.notes if is_fatal]
    assert fatal == [Notification.HANDLER_FAILED] * sum(not is_fine(answer) for answer in called)


@pytest.mark.parametrize("role", ["prepare", "execute", "cleanup"])
def test_an_exception_is_told_with_its_traceback(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(**{role: ValueError("voxels gone")})
    assert recorder.driver().run() == 1
    assert (Notification.HANDLER_FAILED, role, True) in recorder.notes
    shown = capsys.readouterr().out
    assert f"{role} raised ValueError: voxels gone" in shown
    assert "Traceback" in shown


def test_a_faulty_notification_handler_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder(notification=RuntimeError("debugging aid broke"))
    assert recorder.driver().run() == 0
    assert "debugging aid broke" in capsys.readouterr().out


def test_start_and_wait_end_the_process_only_when_something_failed() -> None:
    good = Recorder().driver()
    good.start()
    good.wait_for_completion()
    bad = Recorder(execute=False).driver()
    bad.start()
    with pytest.raises(SystemExit) as end:
        bad.wait_for_completion()
    assert end.value.code == 1


def test_the_context_manager_starts_and_waits() -> None:
    recorder = Recorder()
    with recorder.driver() as driver:
        assert recorder.calls == []
        assert driver.job_name == "stand-alone"
    assert recorder.calls == ["prepare", "execute", "cleanup"]
    with pytest.raises(SystemExit) as end, Recorder(cleanup=False).driver():
        pass
    assert end.value.code == 1


def test_an_error_in_the_body_abandons_the_stage() -> None:
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError), recorder.driver():
        _ = 1 / 0
    assert recorder.calls == []


def test_a_broken_manifest_is_a_driver_error(manifest: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(manifest, stage=None)
    recorder = Recorder()
    driver = recorder.driver()
    assert driver.run() == 2
    assert recorder.calls == []
    assert recorder.notes == [(Notification.DRIVER_ERROR, "driver", True)]
    with pytest.raises(SystemExit) as end:
        driver.start()
    assert end.value.code == 2
    with pytest.raises(DriverError, match="lacks 'stage'"):
        _ = driver.stage_name
    assert "lacks 'stage'" in capsys.readouterr().out


def test_execute_is_given_the_entries(manifest: dict[str, Any], tmp_path: Path) -> None:
    recorder = Recorder()
    assert recorder.driver().run() == 0
    assert recorder.payload is not None
    assert recorder.payload.input_entries["volume"].path == str(tmp_path / "in")
    assert recorder.payload.output_entries["mask"].path == str(tmp_path / "out")


def test_every_property_under_the_platform(manifest: dict[str, Any], tmp_path: Path) -> None:
    write_manifest(manifest, deadline="2099-01-01T00:10:00Z")
    data = object()
    driver = Driver(application_data=data)
    assert driver.application_data is data
    assert driver.job_id == uuid.UUID(JOB_ID)
    assert driver.job_name == "liver 17"
    assert driver.stage_name == "liver"
    assert driver.deadline == datetime(2099, 1, 1, 0, 10, tzinfo=UTC)
    assert driver.report_dir == tmp_path / "report"
    assert driver.models == {"net": tmp_path / "net"}


def test_every_property_stand_alone() -> None:
    driver = Driver()
    assert driver.application_data is None
    assert isinstance(driver.job_id, uuid.UUID)
    assert driver.job_id == driver.job_id
    assert driver.job_name == "stand-alone"
    assert driver.stage_name
    assert driver.deadline is None
    assert driver.report_dir is None
    assert dict(driver.models) == {}


def test_a_report_is_written_whole_and_the_same_again(manifest: dict[str, Any], tmp_path: Path) -> None:
    driver = Driver()
    path = driver.report("metrics", {"b": 1, "a": "ü"})
    assert path == tmp_path / "report" / "metrics.json"
    assert path is not None
    first = path.read_bytes()
    assert json.loads(first) == {"a": "ü", "b": 1}
    driver.report("metrics", {"a": "ü", "b": 1})
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_stand_alone_there_is_no_report() -> None:
    assert Driver().report("metrics", {}) is None


def test_a_report_that_cannot_be_written_is_a_driver_error(manifest: dict[str, Any]) -> None:
    write_manifest(manifest, report_dir="/proc/report")
    recorder = Recorder()

    def execute(driver: Driver, payload: Payload) -> None:
        driver.report("metrics", {})

    driver = Driver(execute_handler=execute, cleanup_handler=recorder.cleanup, notification_handler=recorder.notify)
    assert driver.run() == 2
    assert recorder.calls == ["cleanup"]
    assert (Notification.DRIVER_ERROR, "execute", True) in recorder.notes


def test_a_deadline_in_the_past_keeps_execute_from_starting(manifest: dict[str, Any]) -> None:
    write_manifest(manifest, deadline=utc(-5))
    recorder = Recorder()
    assert recorder.driver(without=("prepare",)).run() == 3
    assert recorder.calls == ["cleanup"]
    assert recorder.notes[-1] == (Notification.DEADLINE_REACHED, "driver", True)


def test_the_deadline_interrupts_execute_and_cleanup_runs(manifest: dict[str, Any], tmp_path: Path) -> None:
    write_manifest(manifest, deadline=utc(1.5))  # a process of its own: pytest-timeout keeps the alarm of this one
    body = """
import threading
from clara_flow.operators.sdk import Driver

def execute(driver, payload):
    try:
        threading.Event().wait(60)
    except Exception:
        print("swallowed")

with Driver(execute_handler=execute, cleanup_handler=lambda driver: print("cleaned up")):
    pass
"""
    done = script(tmp_path, body, CLARA_IO_MANIFEST=os.environ["CLARA_IO_MANIFEST"])
    assert done.returncode == 3, done.stdout + done.stderr
    assert "was reached" in done.stdout
    assert "cleaned up" in done.stdout
    assert "swallowed" not in done.stdout


def test_sigterm_interrupts_execute_and_cleanup_runs() -> None:
    recorder = Recorder()

    def execute(driver: Driver, payload: Payload) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(60)

    driver = Driver(execute_handler=execute, cleanup_handler=recorder.cleanup, notification_handler=recorder.notify)
    assert driver.run() == 143
    assert recorder.calls == ["cleanup"]
    assert recorder.notes[-1][0] is Notification.TERMINATED
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_is_passed_on_after_cleanup() -> None:
    recorder = Recorder(execute=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        recorder.driver().run()
    assert recorder.calls == ["prepare", "execute", "cleanup"]


def test_a_signal_that_the_application_handles_is_left_alone() -> None:
    seen: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        driver = Driver(execute_handler=lambda driver, payload: os.kill(os.getpid(), signal.SIGTERM))
        assert driver.run() == 0
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert seen == [signal.SIGTERM]


def test_the_driver_runs_in_another_thread_too(manifest: dict[str, Any]) -> None:
    write_manifest(manifest, deadline=utc(60))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(Recorder().driver().run()))
    thread.start()
    thread.join(30)
    assert codes == [0]


def script(tmp_path: Path, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an operator written as a script, as the platform does."""
    path = tmp_path / "main.py"
    path.write_text(body)
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, str(path)], env=clean | environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("answer", "code"), [("True", 0), ("None", 0), ("False", 1), ("1 / 0", 1), ("__import__('sys').exit(7)", 1)]
)
def test_a_script_in_the_published_style_ends_with_the_truth(tmp_path: Path, answer: str, code: int) -> None:
    body = f"""
from clara_flow.operators.sdk import Driver
driver = Driver(execute_handler=lambda driver, payload: {answer})
driver.start()
driver.wait_for_completion()
print("the end")
"""
    done = script(tmp_path, body)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("the end" in done.stdout) == (code == 0)
    assert done.stderr == ""


def test_a_script_with_a_broken_manifest_ends_with_2_and_no_traceback(tmp_path: Path) -> None:
    body = "from clara_flow.operators.sdk import Driver\nwith Driver():\n    pass\n"
    done = script(tmp_path, body, CLARA_IO_MANIFEST=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "cannot be read" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_sdk_imports_the_standard_library_only(tmp_path: Path) -> None:
    body = """
import sys
before = set(sys.modules)
import clara_flow.operators.sdk
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = sorted(tops - set(sys.stdlib_module_names) - {"clara_flow"})
print("foreign:", foreign)
"""
    assert "foreign: []" in script(tmp_path, body).stdout
