"""What must be true of a platform after any number of kills. Each checker returns what is not, as sentences.

The checkers of `find_*` look at the machine; those of `check_*` are pure: facts in, violations out.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa

from clara_flow.infra.fastio.volumes import default_root
from clara_flow.records import jobs, payloads
from clara_flow.records.job_queue import MOST_REQUEUES
from clara_flow.records.models import Job, JobOperator
from clara_flow.records.payload_store import PayloadFolder, PayloadStore
from clara_flow.records.state_machine import JobState, JobStatus, OperatorStatus

ENDS = {"complete", "fault", "cancel", "expire", "evict"}
STATUS_OF_END = {
    "complete": JobStatus.HEALTHY,
    "fault": JobStatus.FAULTED,
    "cancel": JobStatus.CANCELED,
    "expire": JobStatus.TERMINATED,
    "evict": JobStatus.EVICTED,
}
FLOW_RUN_STATES = {
    JobStatus.HEALTHY: {"COMPLETED"},
    JobStatus.FAULTED: {"FAILED", "CRASHED"},
    JobStatus.CANCELED: {"CANCELLED"},
    JobStatus.TERMINATED: {"FAILED", "CRASHED"},
    JobStatus.EVICTED: {"FAILED", "CRASHED", "CANCELLED"},
}
Violations = list[str]


@dataclass(slots=True)
class Expected:
    """How a job may end.

    ends        the status that its script gives.
    is_evictable    it shall not be resumed.
    operator_kills  how many of its operators' processes were killed, which is a failure like any other.
    """

    ends: str
    is_evictable: bool = False
    operator_kills: int = 0
    operators: dict[str, str] = field(default_factory=dict)

    def allowed(self, job: Job) -> set[str]:
        """The statuses that it may have."""
        allowed = {self.ends}
        if self.operator_kills or job.losses >= MOST_REQUEUES:
            allowed.add(JobStatus.FAULTED)
        if self.is_evictable:
            allowed.add(JobStatus.EVICTED)
        return allowed


def check_jobs(expected: Mapping[uuid.UUID, Expected], rows: Mapping[uuid.UUID, Job]) -> Violations:
    """No job is lost, all are over, each as its script says."""
    wrong = [f"job {job_id} is lost" for job_id in expected.keys() - rows.keys()]
    wrong += [f"job {job_id} is nobody's" for job_id in rows.keys() - expected.keys()]
    for job_id in expected.keys() & rows.keys():
        job = rows[job_id]
        if job.state is not JobState.STOPPED:
            wrong.append(f"job {job_id} ({job.name}) is {job.phase}")
        elif job.status not in (allowed := expected[job_id].allowed(job)):
            told = " | ".join(job.messages)
            wrong.append(f"job {job_id} ({job.name}) ended {job.status}, not {' or '.join(sorted(allowed))}: {told}")
        wrong += [f"job {job_id} ({job.name}): {problem}" for problem in check_story(job.story, job.status)]
    return wrong


def check_story(story: Sequence[str], status: JobStatus) -> Violations:
    """It was made and queued once, ended once and last, and never ran twice at once."""
    events = [entry.split()[-1] for entry in story]
    wrong = []
    counts = Counter(events)
    if events[:2] != ["create", "start"] or counts["create"] != 1 or counts["start"] != 1:
        wrong.append(f"it begins with {', '.join(events[:2])}")
    ends = [event for event in events if event in ENDS]
    if events[-1] == "request-cancel" and status is JobStatus.CANCELED and not ends:
        ends = ["cancel"]  # it had not begun
    elif ends and events[-1] not in ENDS:
        wrong.append(f"it goes on after its end: {', '.join(events)}")
    if len(ends) != 1:
        wrong.append(f"it has {len(ends)} ends: {', '.join(events)}")
    elif STATUS_OF_END[ends[0]] is not status:
        wrong.append(f"its end {ends[0]} is not its status {status}")
    runs = 0
    for event in events:
        runs += {"begin": 1, "requeue": -1 if runs else 0}.get(event, 0)
        if runs > 1:
            wrong.append(f"it was begun while it ran: {', '.join(events)}")
            break
    return wrong


def check_operators(job: Job, operators: Iterable[JobOperator], folder: PayloadFolder) -> Violations:
    """What the records call completed is sealed and whole; nothing else is sealed; no halves are left."""
    wrong = []
    for row in operators:
        where = f"job {job.id} ({job.name}), operator {row.name}"
        sealed = folder.operator_folder(row.name).is_dir()
        if row.status is OperatorStatus.COMPLETED:
            if not sealed:
                wrong.append(f"{where}: it is {row.detail}, and nothing is sealed")
            elif different := folder.verify(row.name):
                wrong.append(f"{where}: {len(different)} files are not what was sealed")
        elif job.status is JobStatus.HEALTHY:
            wrong.append(f"{where}: it is {row.detail}, and the job completed")
        if row.status is OperatorStatus.RUNNING:
            wrong.append(f"{where}: it runs, and the job is over")
    halves = [path.name for path in folder.path.rglob(".*.partial")]
    return wrong + [f"job {job.id} ({job.name}): the partial folder {name} is left" for name in halves]


@dataclass(frozen=True, slots=True)
class Mark:
    """One line of the operators' marks."""

    word: str
    job: uuid.UUID
    operator: str
    at_ns: int

    @classmethod
    def parse(cls, line: str) -> Mark:
        """From the file's line."""
        word, job, operator, at_ns = line.split()
        return cls(word, uuid.UUID(job), operator, int(at_ns))


def read_marks(folder: Path) -> list[Mark]:
    """All marks, in the order in which they were made."""
    path = folder / "marks"
    return [Mark.parse(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_marks(marks: Sequence[Mark], sealed_ns: Mapping[tuple[uuid.UUID, str], int]) -> Violations:
    """No operator began when its outputs were sealed, nor beside another attempt; what is sealed ran to its end.

    sealed_ns   Unix time of the seal, by job and operator.
    """
    wrong, ended = [], {(mark.job, mark.operator) for mark in marks if mark.word == "end"}
    for mark in marks:
        key = (mark.job, mark.operator)
        if mark.word == "overlap":
            wrong.append(f"job {mark.job}: operator {mark.operator} ran twice at once")
        elif mark.word == "begin" and mark.at_ns > sealed_ns.get(key, mark.at_ns):
            late_s = (mark.at_ns - sealed_ns[key]) / 1e9
            wrong.append(f"job {mark.job}: operator {mark.operator} began {late_s:.3f} s after its outputs were sealed")
    return wrong + [
        f"job {job}: operator {operator} is sealed, and never ran to its end"
        for job, operator in sealed_ns.keys() - ended
    ]


def seals(rows: Iterable[Job], store: PayloadStore) -> dict[tuple[uuid.UUID, str], int]:
    """When each operator's outputs were sealed: the folder got its name then."""
    found = {}
    for job in rows:
        for folder in (store.folder(job.payload_id).path / "operators").glob("[!.]*"):
            found[job.id, folder.name] = folder.stat().st_ctime_ns
    return found


def check_flow_runs(runs: Iterable[Mapping[str, Any]], rows: Mapping[uuid.UUID, Job]) -> Violations:
    """Every flow run is over, each job has one, and it shows how the job ended.

    runs    of Prefect's API: `id`, `name`, `state_type`, `parameters`.
    """
    wrong, shown = [], set()
    for run in runs:
        job_id = uuid.UUID(str(run["parameters"].get("job_id", uuid.UUID(int=0))))
        job, state = rows.get(job_id), run["state_type"]
        if job is None:
            wrong.append(f"the flow run {run['name']} is no job's")
            continue
        shown.add(job_id)
        if state not in FLOW_RUN_STATES.get(job.status, set()):
            wrong.append(f"the flow run {run['name']} of job {job_id} is {state}, and the job ended {job.status}")
    return wrong + [f"job {job_id} ({rows[job_id].name}) has no flow run" for job_id in rows.keys() - shown]


def find_rows(engine: sa.Engine) -> Violations:
    """No lease is left, no history is due."""
    with engine.connect() as connection:
        left = connection.execute(sa.text("SELECT job_id, operator, state FROM leases ORDER BY job_id")).all()
        due = connection.execute(sa.text("SELECT id FROM jobs WHERE history_due")).scalars().all()
    return [
        *(f"a lease of job {row.job_id}, operator {row.operator!r}, is left ({row.state})" for row in left),
        *(f"the history of job {job_id} was not told" for job_id in due),
    ]


def find_volumes(job_ids: Collection[uuid.UUID], root: Path | None = None) -> Violations:
    """No FastIO volume, record of one or mount of these jobs is left."""
    root = root or default_root()
    known = {str(job_id) for job_id in job_ids}
    left = sorted(path.name for path in root.glob("*.*") if path.name.partition(".")[0] in known)
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounted = [place for place in mounts if Path(place).parent == root and Path(place).name.partition(".")[0] in known]
    return [f"the FastIO volume {name} is left" for name in left] + [f"{place} is mounted" for place in mounted]


def find_operators(data_dir: Path) -> Violations:
    """No operator's process is left, nor what its launcher had written down about it."""
    states = data_dir / "operators"
    left = [f"the launcher's {path.name} is left" for path in sorted(states.glob("*"))]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(states):
                left.append(f"process {process.pid} is left: {' '.join(process.cmdline())[:100]}")
    return left


def find_containers(api: Any, job_ids: Collection[uuid.UUID], label: str) -> Violations:
    """No container of these jobs is left, running or not."""
    known = {str(job_id) for job_id in job_ids}
    found = [(entry["Id"][:12], entry["Labels"].get(label)) for entry in api.containers(all=True)]
    return [f"container {identity} of job {job_id} is left" for identity, job_id in found if job_id in known]


def find_files(engine: sa.Engine, store: PayloadStore, rows: Mapping[uuid.UUID, Job]) -> Violations:
    """Outputs are sealed as the records say; nothing half is left; every folder has its record."""
    wrong = []
    for job in rows.values():
        if payloads.get_payload(engine, job.payload_id).removed is None:
            wrong += check_operators(job, jobs.list_operators(engine, job.id), store.folder(job.payload_id))
    known = {job.payload_id.hex for job in rows.values()}
    left = [path.name for path in store.root.iterdir() if path.name not in known] if store.root.is_dir() else []
    return wrong + [f"the payload folder {name} is no job's" for name in sorted(left)]


def flow_runs(api_url: str) -> list[dict[str, Any]]:
    """All flow runs that Prefect knows."""
    import urllib.request

    found: list[dict[str, Any]] = []
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        body = json.dumps({"limit": 200, "offset": len(found), "sort": "ID_DESC"}).encode()
        request = urllib.request.Request(  # noqa: S310  our own server
            f"{api_url}/flow_runs/filter", data=body, headers={"content-type": "application/json"}
        )
        with opener.open(request, timeout=30) as answer:
            page = json.load(answer)
        found += page
        if len(page) < 200:
            return found
