"""What an operator registered becomes delivery tasks: once for each job, whatever becomes of its runners."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from job_fixture import Bench
from tiny.pipelines import scripted

from clara_flow.deployments.trigger import House
from clara_flow.deployments.watch import outcome
from clara_flow.errors import ServiceError
from clara_flow.infra.images.catalog import Catalog, installed
from clara_flow.records import deliveries, jobs
from clara_flow.records.dicom_models import Delivery, DeliveryState
from clara_flow.records.state_machine import JobEvent, OperatorPhase
from clara_flow.settings import load_settings
from clara_flow.tasks import register_results, run_operator
from clara_flow.tasks.job_context import ABANDONED, JobContext

URIS = ["/operators/a/one.txt", "/input/one.txt"]
RECORD: dict[str, Any] = {"version": 1, "agent": "ClaraSCU", "parameters": '["PACS", "ARCHIVE"]', "uris": URIS}


@pytest.fixture
def engine(engine: sa.Engine) -> sa.Engine:
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE deliveries, delivery_items"))
    return engine


def registering(bench: Bench, record: object = RECORD, **keys: Any) -> dict[str, Any]:
    """An operator `r`, after `a`, that writes this record."""
    text = record if isinstance(record, str) else json.dumps(record)
    return program(bench, f"(report / 'delivery.json').write_text({text!r})", **keys)


def program(bench: Bench, line: str, **keys: Any) -> dict[str, Any]:
    """An operator `r`, after `a`, without outputs unless told, that runs a line of Python."""
    operator = scripted("r", "a", **{"output": []} | keys)
    modules = bench.source.parent / "modules"
    modules.mkdir(exist_ok=True)
    operator["variables"]["PYTHONPATH"] = str(modules)
    head = (
        "import json, os, pathlib\nmanifest = json.loads(pathlib.Path(os.environ['CLARA_IO_MANIFEST']).read_text())\n"
    )
    head += "report = pathlib.Path(manifest['report_dir'])\n"
    (modules / "scripted_operator.py").write_text(f"{head}{line}\n")
    return operator


def tasks_of(job: JobContext) -> list[Delivery]:
    found = deliveries.list_deliveries(job.engine, job_id=str(job.job.id))
    return sorted(found, key=lambda task: task.destination)


async def test_a_record_becomes_a_task_for_each_destination(bench: Bench) -> None:
    job = bench.job(scripted("a"), registering(bench))
    assert await bench.run(job) == {"a": "Completed", "r": "Completed"}
    archive, pacs = tasks_of(job)
    key = register_results.key_of(job.job.id, "r", "ClaraSCU")
    assert (pacs.id, archive.id) == (uuid.uuid5(key, "pacs"), uuid.uuid5(key, "archive"))
    assert (pacs.agent, pacs.destination, pacs.parameters) == ("ClaraSCU", "PACS", '"PACS"')
    assert pacs.uris == ["operators/a/one.txt", "input/one.txt"]
    assert all((job.payload.path / uri).is_file() for uri in pacs.uris)
    assert (pacs.job_id, pacs.pipeline_id) == (str(job.job.id), str(job.job.pipeline_id))
    assert (pacs.payload_id, pacs.state) == (str(job.job.payload_id), DeliveryState.PENDING)


async def test_another_agent_gets_one_task_as_given(bench: Bench) -> None:
    job = bench.job(scripted("a"), registering(bench, RECORD | {"agent": "renderserver", "parameters": ""}))
    await bench.run(job)
    (task,) = tasks_of(job)
    assert (task.agent, task.parameters, task.destination) == ("renderserver", "", "")


async def test_the_bundled_operator_registers(bench: Bench) -> None:
    operator: dict[str, Any] = {
        "name": "export",
        "container": {
            "image": "clara/register-results",
            "command": ["python", "register.py", "--agent", "ClaraSCU", "--data", '[\\"PACS\\"]'],
        },
        "requests": {"cpu": 1, "memory": 256},
        "input": [{"from": "a", "path": "/input"}, {"path": "/study"}],
    }
    tiny, bundled = bench.job(scripted("a")).catalog, installed(())
    both = Catalog(bundled.operators | tiny.operators, bundled.images | tiny.images)
    job = bench.job(scripted("a"), operator, catalog=both)
    assert await bench.run(job) == {"a": "Completed", "export": "Completed"}
    (task,) = tasks_of(job)
    assert (task.destination, task.uris) == ("PACS", ["operators/a/one.txt", "input/one.txt"])


async def test_without_a_record_nothing_is_registered(bench: Bench) -> None:
    job = bench.job(scripted("a"), program(bench, "pass"))
    assert await bench.run(job) == {"a": "Completed", "r": "Completed"}
    assert tasks_of(job) == []


async def test_an_operator_with_outputs_registers_nothing(bench: Bench) -> None:
    write = f"(report / 'delivery.json').write_text({json.dumps(RECORD)!r})"
    line = f"{write}; pathlib.Path(manifest['outputs'][0]['path'], 'o').touch()"
    job = bench.job(scripted("a"), program(bench, line, output=[{"path": "/out"}]))
    assert await bench.run(job) == {"a": "Completed", "r": "Completed"}
    assert (job.payload.report_folder("r") / "delivery.json").exists()
    assert tasks_of(job) == []


@pytest.mark.parametrize("crash", ["before its tasks", "after its tasks"])
async def test_a_runner_that_dies_once_it_is_sealed_registers_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    """The next run of the job finds it sealed, and makes the tasks that are missing."""
    real, fails = register_results.register, [True]

    async def broken(*arguments: Any) -> None:
        if crash == "after its tasks" or not fails:
            await real(*arguments)
        if fails and arguments[1].name == "r":
            fails.clear()
            raise ServiceError("PostgreSQL", "lost", remedy="Wait.")

    monkeypatch.setattr(run_operator.register_results, "register", broken)
    job = bench.job(scripted("a"), registering(bench))
    with pytest.raises(ServiceError):
        await bench.run(job)
    assert len(tasks_of(job)) == (2 if crash == "after its tasks" else 0)
    before = tasks_of(job)
    again = bench.again(job)
    assert await bench.run(again) == {"a": "Cached", "r": "Cached"}
    assert [task.destination for task in tasks_of(again)] == ["ARCHIVE", "PACS"]
    assert before in ([], tasks_of(again))


async def test_what_was_delivered_is_not_registered_again_by_a_job_that_goes_on(bench: Bench) -> None:
    job = bench.job(scripted("a"), registering(bench))
    await bench.run(job)
    (task, other) = tasks_of(job)
    deliveries.succeed(bench.engine, task.id)
    deliveries.fail(bench.engine, other.id, False, "refused")
    assert (await bench.run(bench.again(job)))["r"] == "Cached"
    assert [task.state for task in tasks_of(job)] == [DeliveryState.SUCCEEDED, DeliveryState.FAILED]


async def test_a_job_that_takes_it_over_registers_for_itself(bench: Bench) -> None:
    operators = scripted("a"), registering(bench)
    earlier = bench.job(*operators)
    await bench.run(earlier)
    jobs.finish_job(bench.engine, earlier.job.id, earlier.owner, JobEvent.COMPLETE)
    later = bench.job(*operators, resumes=earlier.payload)
    assert await bench.run(later) == {"a": "Cached", "r": "Cached"}
    assert not (later.payload.report_folder("r") / "delivery.json").exists()
    first, second = tasks_of(later)
    assert {first.payload_id, second.payload_id} == {str(later.job.payload_id)}
    assert all((later.payload.path / uri).is_file() for uri in first.uris)
    assert {task.id for task in tasks_of(earlier)}.isdisjoint({first.id, second.id})

    settings = load_settings(data_dir=bench.source.parent)  # where the bench's payloads are
    house = House(settings=settings, engine=bench.engine, catalog=later.catalog)
    rows = jobs.list_operators(bench.engine, later.job.id)
    assert outcome(house, later.job, rows).deliveries == {
        "r": {
            "agent": "ClaraSCU",
            "parameters": '["PACS", "ARCHIVE"]',
            "uris": ["operators/a/one.txt", "input/one.txt"],
        }
    }


async def test_a_runner_that_lost_its_job_registers_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = register_results.facts_of

    async def overtaken(job: JobContext, operator: Any) -> dict[str, Any]:
        if operator.name == "r":
            jobs.requeue_job(bench.engine, job.job.id, reason="its runner was thought dead", owner=job.owner)
        return await real(job, operator)

    monkeypatch.setattr(run_operator.register_results, "facts_of", overtaken)
    job = bench.job(scripted("a"), registering(bench))
    with pytest.raises(Exception, match="does not belong"):
        await bench.run(job)
    assert job.stop_reason == ABANDONED
    assert tasks_of(job) == []


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{", "delivered"),
        ("[1]", "no record of version 1"),
        (RECORD | {"version": 2}, "no record of version 1"),
        (RECORD | {"agent": "a_b"}, "letters, digits and hyphens"),
        (RECORD | {"agent": None}, "must be texts"),
        (RECORD | {"parameters": ["PACS"]}, "must be texts"),
        (RECORD | {"uris": []}, "at least one"),
        (RECORD | {"uris": "a"}, "at least one"),
        (RECORD | {"uris": ["/operators/a/../../../../etc/passwd"]}, "inside the payload"),
        (RECORD | {"uris": ["/operators/a/none.txt"]}, "no file of the payload"),
        (RECORD | {"uris": ["/operators/a"]}, "no file of the payload"),
        (RECORD | {"uris": ["/logs/a.log"]}, "no file of the payload"),
    ],
)
async def test_a_record_that_cannot_be_delivered_fails_its_operator(bench: Bench, record: object, reason: str) -> None:
    job = bench.job(scripted("a"), registering(bench, record))
    assert await bench.run(job) == {"a": "Completed", "r": "Failed"}
    assert reason in str(job.failures["r"])
    assert bench.row(job, "r").detail is OperatorPhase.FAILED
    assert job.payload.sealed("r") is None
    assert tasks_of(job) == []


@pytest.mark.parametrize(
    "line",
    [
        "(report / 'delivery.json').symlink_to('/etc/passwd')",
        "os.mkfifo(report / 'delivery.json')",
        "(report / 'delivery.json').mkdir()",
        "os.truncate(os.open(report / 'delivery.json', os.O_CREAT | os.O_WRONLY), 2**27)",
    ],
)
async def test_a_record_that_is_no_file_fails_its_operator(bench: Bench, line: str) -> None:
    job = bench.job(scripted("a"), program(bench, line))
    assert await bench.run(job) == {"a": "Completed", "r": "Failed"}
    assert tasks_of(job) == []


def test_the_key_is_of_the_job_the_operator_and_the_agent() -> None:
    job, other = uuid.uuid4(), uuid.uuid4()
    keys = [
        register_results.key_of(*of) for of in ((job, "r", "A"), (job, "r", "a"), (job, "s", "A"), (other, "r", "A"))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
