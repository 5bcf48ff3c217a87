"""The hospital day that comes with the simulator, two of its hours replayed, and the files it is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from clara_flow.cli.simulate import simulate as simulate_command
from clara_flow.deployments.simulate import load_workload, policies, simulate
from clara_flow.errors import ClaraFlowError, InputError, SettingsError
from clara_flow.infra.ledger.model import Amounts, Priority
from clara_flow.infra.ledger.simulation import files
from clara_flow.infra.ledger.simulation.workload import Arrival, Workload
from clara_flow.settings import Settings

DAY = Path(__file__).parents[2] / "data" / "hospital_day"
FILES = {
    "arrivals": DAY / "arrivals.csv",
    "nodes": DAY / "nodes.yaml",
    "pipelines": DAY / "pipelines",
    "quotas": DAY / "quotas.yaml",
}
MODALITIES = {"chest-xray": "XR", "ultrasound-views": "US", "multi-ai": "CT", "liver-tumor": "CT", "covid19": "CT"}


@pytest.fixture(scope="module")
def day() -> Workload:
    return load_workload(Settings(), **FILES)


@pytest.fixture(scope="module")
def two_hours(day: Workload) -> Workload:
    return replace(day, arrivals=tuple(a for a in day.arrivals if 10 * 3600 <= a.at_s < 12 * 3600))


def test_the_arrivals_are_what_their_generator_makes() -> None:
    made = subprocess.run([sys.executable, DAY / "make_arrivals.py"], capture_output=True, text=True, check=True)
    assert made.stdout == FILES["arrivals"].read_text()


def test_the_day_has_1500_studies_and_the_measured_peak_hour(day: Workload) -> None:
    hours = Counter(int(arrival.at_s // 3600) for arrival in day.arrivals)
    peak = Counter(MODALITIES.get(a.pipeline, "MR") for a in day.arrivals if 10 * 3600 <= a.at_s < 11 * 3600)
    assert len(day.arrivals) == 1500
    assert hours.most_common(1) == [(10, 225)]
    assert peak == {"XR": 120, "US": 50, "CT": 30, "MR": 25}
    assert {arrival.priority for arrival in day.arrivals} == set(Priority)


def test_definitions_become_what_the_ledger_is_asked_for(day: Workload) -> None:
    multi = day.pipelines["multi-ai"]
    assert sum(operator.amounts.gpu for operator in multi.operators) == 6
    assert multi.preemptible
    assert multi.job == Amounts(jobs=1)
    merger = next(operator for operator in multi.operators if operator.name == "volume-merger")
    assert set(merger.upstreams) == {"roi-split", *(f"{o}-segmentation" for o in ("lung", "colon", "liver", "spleen"))}
    assert day.pipelines["chest-xray"].operators[1].amounts == Amounts(cpu=2, memory_mib=4096, gpu_memory_mib=6144)


def test_two_hours_of_the_day(two_hours: Workload) -> None:
    ledger, whole_job, fifo = simulate(two_hours, policies(["whole-job", "fifo"]))
    jobs = len(two_hours.arrivals)
    assert [sum(report.jobs.values()) for report in (ledger, whole_job, fifo)] == [jobs] * 3
    assert ledger.jobs["completed"] == jobs
    assert ledger.bound_used is not None
    assert ledger.bound_used <= 1
    assert ledger.waits_by_priority["immediate"].p95_s <= 1
    assert ledger.waits.p95_s < whole_job.waits.p95_s / 10
    assert ledger.turnarounds.p95_s < whole_job.turnarounds.p95_s
    assert simulate(two_hours, policies([])) == [ledger]


def test_twice_the_jobs_per_hour_of_whole_job_reservation_on_the_multi_ai_mix(day: Workload) -> None:
    mix = ("multi-ai", "liver-tumor", "multi-ai", "brain-tumor") * 20
    saturated = replace(day, arrivals=tuple(Arrival(at_s=0.0, pipeline=name) for name in mix), quotas=())
    ledger, whole_job = simulate(saturated, policies(["whole-job"]))
    assert ledger.jobs["completed"] == whole_job.jobs["completed"] == len(mix)
    assert ledger.jobs_per_hour >= 2 * whole_job.jobs_per_hour


def test_the_command_prints_tables_and_json(tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("\n".join(FILES["arrivals"].read_text().splitlines()[:12]))
    options = [text for name, path in (FILES | {"arrivals": few}).items() for text in (f"--{name}", str(path))]
    app = typer.Typer()
    app.command()(simulate_command)
    shown = CliRunner().invoke(app, [*options, "--against", "fifo"], env={"COLUMNS": "160"})
    assert shown.exit_code == 0, shown.output
    assert "11 jobs on 1 machine(s) with 4 GPU(s)" in shown.stdout
    assert "Jain's fairness index" in shown.stdout
    told = CliRunner().invoke(app, [*options, "--against", "none", "--json"])
    facts = json.loads(told.stdout)
    assert [policy["policy"] for policy in facts["policies"]] == ["ledger"]
    assert facts["policies"][0]["jobs"]["completed"] == 11


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingsError, match="there are whole-job, fifo"):
        policies(["lottery"])


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.csv", "at,pipeline,priority\n10:00,p,urgent\n", "a.csv:2: priority: is none of lower, normal"),
        ("a.csv", "at,pipeline\nsoon,p\n", "a.csv:2: at: Input should be a valid number"),
        ("a.csv", "at,pipeline\n1,p,extra\n", "a.csv:2: more: Extra inputs"),
        ("a.csv", "at,pipeline\n", "holds no arrivals"),
        ("a.jsonl", '{"at": 1, "pipeline": "p"}\n{\n', "a.jsonl:2: no JSON"),
        ("nodes.yaml", "nodes: []", "nodes: Tuple should have at least 1 item"),
        ("nodes.yaml", "nodes: [", "is no YAML"),
        ("nodes.yaml", "nodes: [{name: a, cpu: 1, memory: 1}, {name: a, cpu: 1, memory: 1}]", "the same name"),
        (
            "nodes.yaml",
            "nodes: [{name: a, cpu: 1, memory: 1}]\nevents: [{at: 1, node: a, gpu: 0, becomes: failed}]",
            "GPU 0 of a, which is not among the nodes",
        ),
        ("quotas.yaml", "quotas: [{tenant: t, weight: 0}]", "quotas.0.weight: Input should be greater than 0"),
        ("quotas.yaml", "quotas: [{tenant: t, hard: {gpus: 1}}]", "unknown resource gpus"),
        ("durations.yaml", "pipelines: {p: {o: {median_s: 5, p95_s: 4}}}", "p95_s is below median_s"),
        ("missing.yaml", None, "cannot be read: No such file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(
    name: str, text: str | None, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    readers = {"a": files.read_arrivals, "nodes": files.read_nodes, "durations": files.read_durations}
    with pytest.raises(InputError, match=complaint):
        readers.get(path.stem, files.read_quotas)(path)


def test_times_of_day_and_machines_as_people_write_them(tmp_path: Path) -> None:
    arrivals = tmp_path / "day.jsonl"
    arrivals.write_text('{"at": "08:30", "pipeline": "p", "priority": "IMMEDIATE"}\n\n{"at": 12.5, "pipeline": "q"}\n')
    nodes = tmp_path / "nodes.yaml"
    nodes.write_text(
        "nodes:\n- name: a\n  cpu: 8\n  memory: 1000\n"
        "  gpus:\n  - {count: 2, memory: 80, nvlink: true}\n  - {memory: 24}\n"
        "events:\n- {at: 10:30, node: a, becomes: usable}\n- {at: 10:15, node: a, gpu: 2, becomes: failed}\n"
    )
    assert [(a.at_s, a.pipeline, a.priority.name) for a in files.read_arrivals(arrivals)] == [
        (12.5, "q", "NORMAL"),
        (30600, "p", "IMMEDIATE"),
    ]
    (machine,), events = files.read_nodes(nodes)
    assert machine.jobs == 16
    assert [(d.uuid, d.memory_mib, sorted(d.links)) for d in machine.devices] == [
        ("a/0", 80, ["a/1"]),
        ("a/1", 80, ["a/0"]),
        ("a/2", 24, []),
    ]
    assert [(event.at_s, event.device) for event in events] == [(36900, "a/2"), (37800, None)]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("arrivals.csv", "at,pipeline\n1,liver\n"), "has no pipeline 'liver'; it has one"),
        (("pipelines/durations.yaml", "pipelines: {}"), "does not say how long these operators of 'one' last: step"),
        (
            (
                "pipelines/two.yaml",
                "api-version: 0.4.0\nname: one\noperators:\n- {name: step, container: {image: a/b}}\n",
            ),
            "another definition of .* has the name 'one', too",
        ),
    ],
)
def test_definitions_durations_and_arrivals_must_fit_together(
    change: tuple[str, str], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "pipelines").mkdir()
    texts = {
        "arrivals.csv": "at,pipeline\n1,one\n",
        "nodes.yaml": "nodes: [{name: a, cpu: 8, memory: 9000}]",
        "pipelines/durations.yaml": "pipelines: {one: {step: {median_s: 5}}}",
        "pipelines/one.yaml": "api-version: 0.4.0\nname: one\noperators:\n- name: step\n  container: {image: a/b}\n",
    }

    def load() -> Workload:
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        return load_workload(
            Settings(),
            arrivals=tmp_path / "arrivals.csv",
            nodes=tmp_path / "nodes.yaml",
            pipelines=tmp_path / "pipelines",
        )

    assert load().arrivals[0].tenant == Settings().tenant
    texts |= dict([change])
    with pytest.raises(ClaraFlowError, match=complaint):
        load()
