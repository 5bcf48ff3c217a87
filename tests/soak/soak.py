"""A platform under a stream of jobs and `kill -9`: what is done to it, and what must be true of it afterwards.

Everything is drawn from one seed. What a kill hits still depends on the instant, so the same seed gives the same plan,
not the same run.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platform_fixture import CLARA_FLOW, command_environment, processes_below
from soak import invariants, workload
from soak.containers import ContainerMarks
from soak.invariants import Expected, Violations
from soak.kills import Machine, Target
from soak.workload import CATALOG, Kind
from waiting import eventually

from clara_flow.deployments import trigger
from clara_flow.deployments.trigger import Compiled, House
from clara_flow.errors import ServiceError
from clara_flow.infra.images.catalog import installed
from clara_flow.infra.launchers.docker import JOB_LABEL
from clara_flow.infra.postgres import records_url
from clara_flow.records import jobs
from clara_flow.records.database import connect
from clara_flow.records.doorbell import Doorbell
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobPriority, JobState
from clara_flow.services.platform import look, take_down
from clara_flow.settings import Settings, environment_of, load_settings

MOST_NEWS = 12  # a kill comes after so many changes of jobs and operators at most
MOST_QUIET_S = 6.0  # or when nothing has changed for so long
TARGET_WITHIN_S = 120.0
UP_WITHIN_S = 120.0


def soak_settings(folder: Path, **more: Any) -> Settings:
    """Settings of a platform that looks after itself every other second."""
    return load_settings(
        data_dir=folder / "data",
        catalogs=(CATALOG,),
        node_name="soak",
        node_jobs=4,
        warm_runners=2,
        lease_ttl_s=5,
        poll_s=1,
        housekeeping_s=2,
        stop_grace_s=1,
        orphan_payload_s=5,
        least_retention_s=0,
        **more,
    )


@dataclass
class Soak:
    """One platform, its jobs, its kills.

    image       of containers; None: jobs run as processes. `containers` are their marks.
    open_jobs   how many are under way at once.
    """

    settings: Settings
    folder: Path
    seed: int
    image: str | None = None
    engine_api: Any = None
    containers: ContainerMarks | None = None
    open_jobs: int = 5
    expected: dict[uuid.UUID, Expected] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311
        self.machine = Machine(self.settings, self.engine_api)
        self.marks = Path("/dev/shm") / f"clara-flow-soak-{uuid.uuid4().hex}"
        self.marks.mkdir()
        self.study = self.folder / "study"
        self.study.mkdir()
        (self.study / "slice.txt").write_text("voxels\n")
        self.next_kinds: list[Kind] = workload.kinds_in_turn(self.chance)
        self.to_cancel: set[uuid.UUID] = set()
        self.compiled: dict[str, Compiled] = {}
        self.rising: subprocess.Popen[bytes] | None = None
        self.began = time.monotonic()

    def up(self) -> None:
        """`clara-flow up`; returns when everything answers."""
        self.rising = self._command_up()
        self._eventually("clara-flow up returns", lambda: not self.rises(), UP_WITHIN_S)

    def rises(self) -> bool:
        """Whether `clara-flow up` is at work. One that failed, since what it started was killed, is repeated, as a
        hospital's init system does."""
        if self.rising is None:
            return False
        status = self.rising.poll()
        if status is None:
            return True
        output = self.rising.communicate()[0]
        self.tell("up" if status == 0 else f"clara-flow up ended with status {status}: {output.decode()}")
        self.rising = self._command_up() if status else None
        return self.rising is not None

    def _command_up(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [CLARA_FLOW, "up", "--detach"],
            env=command_environment(self.settings, **environment_of(self.settings)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def connect(self) -> None:
        """Connect to the records."""
        self.engine = connect(records_url(self.settings))
        self.house = House(settings=self.settings, engine=self.engine, catalog=installed(self.settings.catalogs))
        self.bell = Doorbell(self.engine, (jobs.NEWS,))

    def close(self) -> None:
        """Take everything down; nothing is left in shared memory."""
        with suppress(AttributeError):
            self.bell.close()
            self.engine.dispose()
        if self.rising is not None:
            self.rising.kill()
            self.rising.communicate()
        take_down(self.settings)
        shutil.rmtree(self.marks)
        print(*self.story, sep="\n")  # pytest shows it with a failure

    def tell(self, text: str) -> None:
        """One line of the story that is shown when something is wrong, and can be followed in the file `story`."""
        self.story.append(f"{datetime.now(UTC):%H:%M:%S} {time.monotonic() - self.began:7.2f} s  {text}")
        with (self.folder / "story").open("a") as file:
            file.write(f"{self.story[-1]}\n")

    def run(self, parts: Sequence[str]) -> None:
        """Kill one of each of these parts, one after another, under a stream of jobs."""
        for part in parts:
            self.keep_busy()
            self.wait_for_news(self.chance.randint(1, MOST_NEWS))
            self.kill(part)
        self.finish_kinds()

    def keep_busy(self) -> None:
        """Have `open_jobs` under way, as far as the database answers, and a supervisor."""
        self.rises()
        with suppress(ServiceError):
            self.ask_for_ends()
            missing = self.open_jobs - len(self.open_ids())
            for _ in range(missing):
                self.submit(self.next_kinds.pop() if self.next_kinds else workload.draw(self.chance))

    def finish_kinds(self) -> None:
        """Each kind of job comes at least once, however few kills there were."""
        while self.next_kinds:
            with suppress(ServiceError):
                self.submit(self.next_kinds[-1])
                self.next_kinds.pop()
                continue
            self.wait_for_news(1)

    def submit(self, kind: Kind) -> None:
        """Create a job as every caller does. Raises ServiceError while the database is away; it may be there then."""
        name = f"{kind.name}-{len(self.expected)}-{uuid.uuid4().hex[:8]}"
        if kind.name not in self.compiled:
            path = self.folder / f"{kind.name}.yaml"
            path.write_text(kind.definition(self.marks, self.image))
            self.compiled[kind.name] = trigger.compile_definition(self.settings, path, {})
        try:
            job_id = trigger.create_job(
                self.house,
                self.compiled[kind.name],
                source=self.study,
                runtime="docker" if self.image else "process",
                name=name,
                priority=JobPriority(self.chance.choice(workload.PRIORITIES)),
                tenant=self.chance.choice(workload.TENANTS),
            ).id
        except ServiceError as error:
            self.tell(f"job {name} could not be created: {error}")
            raise
        self.expected[job_id] = Expected(
            kind.ends,
            is_evictable=kind.keys.get("on-restart") == "evict",
            operators={operator: script for operator, (_, script) in kind.operators.items()},
        )
        if kind.is_cancelled:
            self.to_cancel.add(job_id)
        self.tell(f"job {job_id} {kind.name}")

    def ask_for_ends(self) -> None:
        """Cancel what shall be cancelled, once it runs."""
        for job_id in list(self.to_cancel):
            if jobs.get_job(self.engine, job_id).state is not JobState.PENDING:
                jobs.cancel_job(self.engine, job_id, reason="the soak asks for its end")
                self.to_cancel.discard(job_id)

    def open_ids(self) -> list[uuid.UUID]:
        """Jobs that are not over."""
        return [job.id for job in jobs.list_jobs(self.engine, states=(JobState.PENDING, JobState.RUNNING))]

    def wait_for_news(self, count: int) -> None:
        """Until so many jobs and operators have changed, or nothing does for a time."""
        heard, quiet_s = 0, self.chance.uniform(0.2, MOST_QUIET_S)
        while heard < count and (news := self.bell.wait(quiet_s)):
            heard += len(news)

    def kill(self, part: str) -> None:
        """Kill one of that part, as soon as there is one."""
        hit: list[Target] = []

        def one_is_killed() -> bool:
            self.keep_busy()
            if target := self.machine.kill_one(part, self.chance):
                hit.append(target)
            return bool(hit)

        self._eventually(f"there is a {part} to kill", one_is_killed, TARGET_WITHIN_S)
        (target,) = hit
        self.killed[part] += 1
        self.tell(f"kill -9 {target.name}" + (f" of job {target.job_id}" if target.job_id else ""))
        if target.job_id in self.expected:
            self.expected[target.job_id].operator_kills += 1
        if part == "supervisor" and self.rising is None:
            self.rising = self._command_up()

    def drain(self, within_s: float) -> None:
        """Until every job is over and every service answers."""

        def is_up() -> bool:
            return not self.rises() and look(self.settings).is_up

        def is_over() -> bool:
            with suppress(ServiceError):
                self.ask_for_ends()
                return not self.open_ids()
            return False

        self._eventually("every service answers", is_up, UP_WITHIN_S)
        self._eventually("every job is over", is_over, within_s)
        self.tell("every job is over")

    def settle(self, within_s: float) -> Violations:
        """What is not as it must be, after some time to put it right; and when the platform is down."""
        deadline = time.monotonic() + within_s
        wrong = self.violations()
        while wrong and time.monotonic() < deadline:
            self.bell.wait(0.5)  # a condition over the whole platform has no event of its own
            wrong = self.violations()
        self.tell(f"settled after {time.monotonic() - deadline + within_s:.1f} s with {len(wrong)} violations")
        self.bell.close()
        self.engine.dispose()
        take_down(self.settings)
        left = [f"process {process.pid} outlives its platform" for process in processes_below(self.settings.data_dir)]
        return wrong + left

    def violations(self) -> Violations:
        """Everything that is not as it must be now."""
        rows = self.rows()
        store = self.house.store
        wrong = invariants.check_jobs(self.expected, rows)
        wrong += invariants.find_rows(self.engine)
        wrong += invariants.find_files(self.engine, store, rows)
        wrong += invariants.find_volumes(rows.keys())
        wrong += invariants.find_operators(self.settings.data_dir)
        marks = self.containers.marks if self.containers else invariants.read_marks(self.marks)
        wrong += invariants.check_marks(marks, invariants.seals(rows.values(), store))
        if self.engine_api is not None:
            wrong += invariants.find_containers(self.engine_api, rows.keys(), JOB_LABEL)
        runs = invariants.flow_runs(look(self.settings).prefect_api_url)
        return wrong + invariants.check_flow_runs(runs, rows)

    def rows(self) -> dict[uuid.UUID, Job]:
        """All jobs."""
        return {job.id: job for job in jobs.list_jobs(self.engine)}

    def summary(self) -> str:
        """What happened, for people."""
        rows = self.rows().values()
        ends = Counter(str(job.status) for job in rows)
        return (
            f"seed {self.seed}: {self.killed.total()} kills ({dict(self.killed)}), {len(rows)} jobs ({dict(ends)}), "
            f"{sum(job.requeues for job in rows)} queued again, {time.monotonic() - self.began:.0f} s"
        )

    def _eventually(self, what: str, predicate: Callable[[], bool], within_s: float) -> None:
        try:
            eventually(predicate, within_s=within_s, every_s=0.2)
        except AssertionError:
            stuck = [f"{job.id} ({job.name}) is {job.phase}: {job.story}" for job in self.open_rows()]
            raise AssertionError("\n".join([f"not within {within_s:g} s: {what}", *stuck])) from None

    def open_rows(self) -> list[Job]:
        """Jobs that are not over; none when the database does not answer."""
        with suppress(ServiceError):
            return jobs.list_jobs(self.engine, states=(JobState.PENDING, JobState.RUNNING))
        return []
