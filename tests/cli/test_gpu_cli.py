"""`clara-flow gpu` as users type it: a pool in a real database, whose GPUs the real pynvml has read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from nvml_fixture import FakeNvml, fake_nvml, fake_nvml_here, nvml_library  # noqa: F401
from platform_fixture import CLARA_FLOW
from postgres_fixture import database_url  # noqa: F401

from clara_flow.cli import start
from clara_flow.infra.gpu import nvml
from clara_flow.infra.gpu.node import NodeInventory, to_ledger_node
from clara_flow.infra.gpu.status import short
from clara_flow.records import jobs, leases, nodes, payloads, pipelines
from clara_flow.records.database import connect
from clara_flow.records.owner import Owner

OWNER = Owner.of_this_process()
BIG, SMALL = "GPU-aaaaaaaa-0000", "GPU-aaaaaaab-0000"
CARD, FIRST, SECOND = "GPU-cccccccc-0000", "MIG-11111111-0000", "MIG-22222222-0000"

Command = Callable[..., tuple[int, str, str]]


class Pool:
    """Two machines: gpu-1 with two cards, gpu-2 with a divided one and none else."""

    def __init__(self, engine: sa.Engine, fake: FakeNvml) -> None:
        self.engine, self.fake, self.memory = engine, fake, nvml.Memory()
        self.sessions = {name: uuid.uuid4() for name in ("gpu-1", "gpu-2")}
        fake.add_gpu(BIG, name="NVIDIA H200", memory_mib=143_771)
        fake.add_gpu(SMALL)
        fake.add_gpu(CARD, name="NVIDIA A100")
        fake.add_instance(CARD, instance=1, uuid=FIRST)
        fake.add_instance(CARD, instance=2, uuid=SECOND)
        for name in self.sessions:
            self.announce(name)

    def announce(self, name: str, ttl_s: float = 600) -> None:
        of_first = {BIG, SMALL}
        with nvml.opened():
            found = nvml.read_gpus(self.memory)
        gpus = tuple(gpu for gpu in found if (gpu.uuid in of_first) is (name == "gpu-1"))
        inventory = NodeInventory(hostname=name, cpu=16, memory_mib=64_000, shm_mib=32_000, gpus=gpus)
        nodes.announce(
            self.engine, name, self.sessions[name], OWNER, inventory=inventory.to_json(), jobs=4, ttl_s=ttl_s
        )

    def job(self, name: str, node: str, *operators: tuple[str, dict[str, int], list[str]], tenant: str) -> uuid.UUID:
        """A running job; its operators hold these amounts and devices."""
        pipeline = pipelines.create_pipeline(self.engine, name="brain", definition="d", plan={"name": "brain"})
        job_id = jobs.create_job(
            self.engine, name=name, pipeline_id=pipeline.id, payload_id=payloads.create_payload(self.engine).id,
            operators=[operator for operator, _, _ in operators], runtime="process", timeout_s=600, tenant=tenant,
        ).id  # fmt: skip
        held = [("", {"jobs": 1, "fastio_mib": 500}, []), *operators]
        rows = [
            leases.GrantRow(
                id=job_id if operator == "" else uuid.uuid4(), job_id=job_id, operator=operator, tenant=tenant,
                amounts=amounts, node=node, devices=devices, limit_s=600,
            )
            for operator, amounts, devices in held
        ]  # fmt: skip
        assert len(leases.grant(self.engine, rows, 600)) == len(rows)
        return job_id

    def usable(self) -> set[str]:
        """Devices that the ledger may put work on."""
        return {
            device.uuid
            for row in nodes.list_nodes(self.engine)
            for device in to_ledger_node(
                NodeInventory.from_json(row.inventory),
                name=row.name,
                jobs=row.jobs,
                drained_devices=row.drained_devices,
            ).devices
            if device.usable and not row.drained
        }


@pytest.fixture
def pool(
    database_url: str,  # noqa: F811
    fake_nvml_here: FakeNvml,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Pool]:
    monkeypatch.setenv("CLARA_FLOW_DATABASE_URL", database_url)
    monkeypatch.setenv("CLARA_FLOW_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE leases, nodes, quotas, job_operators, jobs, pipelines, payloads"))
    yield Pool(engine, fake_nvml_here)
    engine.dispose()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `clara-flow gpu ...`: exit status, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clara-flow", "gpu", *arguments])
        with pytest.raises(SystemExit) as ended:
            start.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def lines_of(command: Command) -> list[str]:
    status, out, _ = command("status")
    assert status == 0
    return [re.sub(" +", " ", line).strip() for line in out.splitlines()]


def test_status_shows_machines_devices_and_holders(pool: Pool, command: Command) -> None:
    whole = pool.job(
        "ct [head]", "gpu-1", ("segment", {"cpu": 4, "memory_mib": 8_000, "gpu": 1}, [BIG]), tenant="ward-7"
    )
    shares = [
        pool.job(name, "gpu-1", ("detect", {"cpu": 1, "gpu_memory_mib": mib}, [SMALL]), tenant="default")
        for name, mib in (("chest 1", 6_000), ("chest 2", 3_000))
    ]
    pool.fake.set(SMALL, clocks="0x40", temperature="93", process="4000000 700")
    pool.announce("gpu-1")
    hot = "degraded: slowed down: too hot (hardware)"
    assert lines_of(command) == [
        "gpu-1 3 of 4 jobs, 6 of 16 cores, 8000 of 64000 MiB memory, 1500 of 16000 MiB FastIO",
        "GPU model memory foreign °C state held by",
        f"GPU-aaaaaaaa NVIDIA H200 143771 - 40 ok job {str(whole)[:8]} ct [head] segment (ward-7)",
        f"GPU-aaaaaaab Tesla T4 16000 700 93 {hot} job {str(shares[0])[:8]} chest 1 detect (default, 6000 MiB)",
        f"job {str(shares[1])[:8]} chest 2 detect (default, 3000 MiB)",
        "gpu-2 0 of 4 jobs, 0 of 16 cores, 0 of 64000 MiB memory, 0 of 16000 MiB FastIO",
        "GPU model memory foreign °C state held by",
        "GPU-cccccccc NVIDIA A100 16000 - 40 ok divided",
        "MIG-11111111 MIG 1g.5gb 4000 - - ok -",
        "MIG-22222222 MIG 1g.5gb 4000 - - ok -",
    ]


def test_status_for_programs_has_every_fact(pool: Pool, command: Command) -> None:
    job_id = pool.job("ct", "gpu-1", ("segment", {"gpu": 1}, [BIG]), tenant="ward-7")
    pool.fake.lose(SMALL)
    pool.announce("gpu-2", ttl_s=0)
    command("drain", SMALL, "--yes")
    status, out, err = command("status", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["pool"] is True
    first, second = document["nodes"]
    assert (first["name"], first["jobs"], first["silent"], second["silent"]) == ("gpu-1", 4, False, True)
    assert first["held"] == {"jobs": 1, "fastio_mib": 500, "gpu": 1}
    big, small = first["gpus"]
    assert (big["uuid"], big["health"], big["drained"], small["drained"]) == (BIG, "ok", False, True)
    assert big["holders"] == [
        {
            "job_id": str(job_id),
            "job_name": "ct",
            "operator": "segment",
            "tenant": "ward-7",
            "gpu_memory_mib": None,
        }
    ]
    assert "silent" in next(line for line in lines_of(command) if line.startswith("gpu-2"))


def test_a_lost_gpu_is_shown_and_gets_no_work(pool: Pool, command: Command) -> None:
    pool.fake.lose(SMALL)
    pool.announce("gpu-1")
    (failed,) = (line for line in lines_of(command) if line.startswith("GPU-aaaaaaab"))
    assert "failed: it is lost" in failed
    assert pool.usable() == {BIG, FIRST, SECOND}


def test_an_empty_pool(pool: Pool, command: Command) -> None:
    with pool.engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE nodes"))
    assert lines_of(command) == ["No machine has joined the pool yet."]


def test_without_a_platform_it_is_this_machine(fake_nvml: FakeNvml, tmp_path: Path) -> None:  # noqa: F811
    fake_nvml.add_gpu(BIG, name="NVIDIA H200")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLARA_FLOW_")}
    environment |= fake_nvml.environment | {"CLARA_FLOW_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CLARA_FLOW, "gpu", "status", *more], env=environment, capture_output=True, text=True, check=True
        )

    found = run("--json")
    document = json.loads(found.stdout)
    assert document["pool"] is False
    assert [gpu["uuid"] for node in document["nodes"] for gpu in node["gpus"]] == [BIG]
    assert "this is this machine alone" in found.stderr
    assert "NVIDIA H200" in run().stdout
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("reference", "left"),
    [
        ("gpu-1", {FIRST, SECOND}),
        (BIG, {SMALL, FIRST, SECOND}),
        ("gpu-aaaaaaab", {BIG, FIRST, SECOND}),
        ("MIG-1", {BIG, SMALL, SECOND}),
        ("GPU-cc", {BIG, SMALL}),
    ],
)
def test_drain_and_undrain(pool: Pool, command: Command, reference: str, left: set[str]) -> None:
    everything = pool.usable()
    assert everything == {BIG, SMALL, FIRST, SECOND}
    status, out, _ = command("drain", reference, "--yes")
    assert status == 0
    assert "is out of service; 0 jobs run there and may end." in out
    assert pool.usable() == left
    status, out, _ = command("drain", reference)  # again: nothing is asked
    assert (status, "already" in out) == (0, True)
    pool.announce("gpu-1")  # a worker that starts anew does not undo it
    assert pool.usable() == left
    for _ in range(2):
        status, out, _ = command("undrain", reference)
        assert (status, "is in service" in out) == (0, True)
        assert pool.usable() == everything


def test_drained_devices_and_machines_are_marked(pool: Pool, command: Command) -> None:
    command("drain", "GPU-aaaaaaaa", "-y")
    command("drain", "gpu-2", "-y")
    marked = [line.split()[0] for line in lines_of(command) if "drained" in line]
    assert marked == ["GPU-aaaaaaaa", "gpu-2", "GPU-cccccccc", "MIG-11111111", "MIG-22222222"]
    assert "out of service with its machine" in command("undrain", "MIG-1")[1]


def test_it_asks_and_says_what_runs_there(
    pool: Pool, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pool.job("ct", "gpu-1", ("segment", {"gpu": 1}, [BIG]), tenant="default")
    answers = tmp_path / "answers"
    for answer, status in (("n\n", 1), ("", 1), ("y\n", 0)):
        assert BIG in pool.usable()
        answers.write_text(answer)
        with answers.open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            ended, _, err = command("drain", BIG)
        assert ended == status
        assert "1 job runs there and may end." in err
    assert BIG not in pool.usable()


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("gpu-9", "there is no machine 'gpu-9' in the pool (there are: gpu-1, gpu-2)"),
        ("GPU-aaaaaaa", "is the beginning of 2 GPUs' UUIDs"),
        ("MIG-", "is the beginning of 2 GPUs' UUIDs"),
        ("", "is the beginning of 5 GPUs' UUIDs"),
    ],
)
@pytest.mark.parametrize("verb", [("drain", "--yes"), ("undrain",)])
def test_what_names_nothing_or_too_much_is_refused(
    pool: Pool, command: Command, verb: tuple[str, ...], reference: str, complaint: str
) -> None:
    status, out, err = command(*verb, reference)
    assert (status, out) == (3, "")
    assert complaint in err
    assert pool.usable() == {BIG, SMALL, FIRST, SECOND}


def test_without_a_database_nothing_can_be_drained(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLARA_FLOW_DATA_DIR", str(tmp_path / "data"))
    status, _, err = command("drain", "gpu-1", "--yes")
    assert status == 4
    assert "clara-flow up" in err


def test_uuids_are_shown_as_short_as_can_be_told_apart() -> None:
    assert short("GPU-12345678-aaaa", ["GPU-12345678-aaaa", "GPU-99999999-aaaa"]) == "GPU-12345678"
    assert short("GPU-12345678-aaaa", ["GPU-12345678-aaab", "GPU-12345678-aaaa"]) == "GPU-12345678-aaaa"
    assert short("GPU-12345678-aaaa", ["GPU-12345678-baaa"]) == "GPU-12345678-a"


@pytest.mark.parametrize("arguments", [(), ("status",), ("drain",), ("undrain",)])
def test_every_command_explains_itself_with_an_example(command: Command, arguments: tuple[str, ...]) -> None:
    status, out, _ = command(*arguments, "--help")
    assert status == 0
    assert "Example" in out
