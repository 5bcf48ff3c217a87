"""Modalities that send without end, a PACS, and `kill -9` between them: what is done, and what must be true afterwards.

A platform as in `soak.soak`, whose jobs come by C-STORE. The modalities and the PACS live in the test's process: they
know of each instance how often it was sent, how often that was answered with success, and how often its result arrived.
"""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dicom_peers import STUDY, associate, data_set_bytes, data_set_of, instance, new_uid, produced
from pydicom.uid import CTImageStorage
from pynetdicom.association import Association
from services.dicom.adapter.adapter_world import answering, registering
from services.dicom.export import peers
from soak import invariants
from soak.invariants import Expected, Violations
from soak.kills import Machine, Target
from soak.soak import UP_WITHIN_S, Soak, soak_settings
from sqlmodel import Session, select
from tiny.pipelines import TINY, write_definition

from clara_flow.errors import ServiceError
from clara_flow.records import deliveries, dicom_config, dicom_models
from clara_flow.records.delivery_queries import list_items
from clara_flow.records.dicom_models import (
    AeTitle,
    Delivery,
    DeliveryState,
    Destination,
    Group,
    GroupState,
    Instance,
    ItemState,
    SourceNode,
    Submission,
)
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobState, JobStatus
from clara_flow.services import dicom_service, gateway_service
from clara_flow.services.dicom.places import Places
from clara_flow.services.platform import look
from clara_flow.settings import Settings

AETITLE, DESTINATION = "SOAK", "PACS"
MOST_AWAY = 8  # studies whose results have not all arrived; then the modalities wait
PATIENCE_S = 5.0  # of a modality with an answer
PAUSE_S = 0.3  # of a modality that was not answered
SLOW_S = 0.03  # the most that the PACS takes for an answer
SIDES = (8, 8, 32, 256, 700)  # pixels
# Kills of these come while something is on the wire, where that can be waited for: instances, or their results, too.
BOTH_WAYS = ("in", "out")
WHILE_SENDING = {"listener": ("in",)} | dict.fromkeys(("adapter", "backend", "postgres", "supervisor"), BOTH_WAYS)
WHILE_SENDING_S = 5.0
HURRY_S = 0.01


def dicom_soak_settings(folder: Path, *, dicom_port: int, gateway_port: int, prefect_port: int) -> Settings:
    """A platform that looks after itself every other second, and receives."""
    return soak_settings(folder, prefect_port=prefect_port).model_copy(
        update={
            "catalogs": (TINY,),
            "dicom_port": dicom_port,
            "gateway_port": gateway_port,
            "dicom_listeners": 2,
            "dicom_watermark_percent": 100,
            "dicom_reserve_mib": 0,
            "dicom_idle_timeout_s": 10,
            "dicom_submit_retry_delay_s": 0.5,
            "dicom_export_retry_delay_s": 0.2,
            "storage_limit_percent": 100,
        }
    )


@dataclass
class Ledger:
    """What modalities know of each instance, by SOP Instance UID. For any thread.

    content     digest of its data set. sent, answered: how often; the second counts answers 0x0000 only.
    arrived     digests of what came as a result, by its UID; received: how many results in all.
    studies     results that have not arrived, by study. under_way: how many are on the wire now, in and out.
    """

    content: dict[str, str] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    arrived: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    received: int = 0
    under_way: Counter[str] = field(default_factory=Counter)
    studies: dict[str, set[str]] = field(default_factory=dict)
    refused: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.changed = threading.Condition()

    def away(self) -> int:
        """Studies whose results have not all arrived."""
        return len(self.studies)

    @contextmanager
    def sending(self, way: str) -> Iterator[None]:
        """While inside, something is on the wire."""
        with self.changed:
            self.under_way[way] += 1
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.under_way[way] -= 1

    def wait_for_sending(self, ways: Collection[str]) -> None:
        """Until something is on the wire, within limits."""
        with self.changed:
            self.changed.wait_for(lambda: any(self.under_way[way] for way in ways), WHILE_SENDING_S)

    def has_arrived(self, result: str, content: str) -> None:
        """A result is at the PACS."""
        with self.changed:
            self.arrived[result].add(content)
            self.received += 1
            self.studies = {study: left - {result} for study, left in self.studies.items() if left - {result}}
            self.changed.notify_all()


class Modality(threading.Thread):
    """Sends studies on one association or several, each instance until it is answered with success."""

    def __init__(self, port: int, ledger: Ledger, seed: int) -> None:
        super().__init__(name=f"modality-{seed}", daemon=True)
        self.port, self.ledger = port, ledger
        self.chance = random.Random(seed)  # noqa: S311
        self.ended = threading.Event()
        self.problem = ""

    def run(self) -> None:
        """Until `ended` is set and the study is whole."""
        try:
            while not self.ended.is_set():
                self._wait_for_room()
                self._send_study()
                self.ended.wait(self.chance.uniform(0, 0.5))
        except Exception as error:  # noqa: BLE001  the test tells it
            self.problem = repr(error)

    def _wait_for_room(self) -> None:
        with self.ledger.changed:
            while self.ledger.away() >= MOST_AWAY and not self.ended.is_set():
                self.ledger.changed.wait(0.5)

    def _send_study(self) -> None:
        uid = new_uid(STUDY)
        made = [instance(uid, side=self.chance.choice(SIDES)) for _ in range(self.chance.randint(1, 8))]
        with self.ledger.changed:
            self.ledger.studies[uid] = {produced(one.SOPInstanceUID) for one in made}
            for one in made:
                self.ledger.content[str(one.SOPInstanceUID)] = _digest(data_set_bytes(one))
        while made:
            count = self.chance.randint(1, len(made))
            taken = self._send(made[:count])
            made = [one for one in made if one.SOPInstanceUID not in taken]
            if made and len(taken) < count:
                threading.Event().wait(PAUSE_S)

    def _send(self, made: list[Any]) -> set[str]:
        """Those that were answered with success on one association."""
        taken: set[str] = set()
        with suppress(OSError):  # pynetdicom leaves the sockets of refused connections to the garbage collector
            socket.create_connection(("127.0.0.1", self.port), PATIENCE_S).close()
            taken = self._send_on(made)
        return taken

    def _send_on(self, made: list[Any]) -> set[str]:
        taken: set[str] = set()
        association = associate(self.port, AETITLE, patience_s=PATIENCE_S)
        try:
            for one in made:
                status = self._store(association, one)
                if status is None:
                    break
                if status == 0:
                    taken.add(str(one.SOPInstanceUID))
        finally:
            if association.is_established:
                association.release()
        return taken

    def _store(self, association: Association, one: Any) -> int | None:
        """The status; None when nobody answers any more."""
        uid = str(one.SOPInstanceUID)
        if not association.is_established:
            return None
        with self.ledger.changed:
            self.ledger.sent[uid] += 1
        try:
            with self.ledger.sending("in"):
                status: int | None = association.send_c_store(one).get("Status")
        except (RuntimeError, ValueError):
            return None
        with self.ledger.changed:
            if status == 0:
                self.ledger.answered[uid] += 1
            elif status is not None:
                self.ledger.refused[status] += 1
        return status


class DicomMachine(Machine):
    """Knows the processes that receive, send and answer, too."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        super().__init__(settings)
        self.ledger = ledger
        self.delay = random.Random(0)  # noqa: S311
        self.hit: set[str] = set()  # some take a while to die
        self.finders |= {
            "listener": lambda: self._programs("listener", dicom_service.LISTENER_PROGRAM),
            "adapter": lambda: self._programs("adapter", dicom_service.PROGRAM),
            "gateway": lambda: self._programs("gateway", gateway_service.PROGRAM),
        }

    def targets(self, part: str) -> list[Target]:
        """Those that live now; of some parts, once something is on the wire."""
        found = [target for target in super().targets(part) if target.name not in self.hit]
        if found and part in WHILE_SENDING:
            self.ledger.wait_for_sending(WHILE_SENDING[part])
            threading.Event().wait(self.delay.uniform(0, HURRY_S))
        return found

    def kill_one(self, part: str, chance: random.Random) -> Target | None:
        """Each once."""
        target = super().kill_one(part, chance)
        self.hit |= {target.name} if target else set()
        return target


@dataclass
class DicomSoak(Soak):
    """The soak of jobs, with modalities in the place of its callers. modalities: how many."""

    modalities: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.next_kinds = []
        self.ledger = Ledger()
        self.machine = DicomMachine(self.settings, self.ledger)
        self.slow = random.Random(self.seed)  # noqa: S311
        self.senders: list[Modality] = []
        self.stack = ExitStack()

    def begin(self) -> None:
        """Configure everything, then let the modalities send."""
        self.pacs = self.stack.enter_context(peers.scp(self._keep, classes=[CTImageStorage]))
        again = {"retries": 3, "retry-on": ["lost", "preempted", "failed"]}  # they are killed, too
        operators = answering(**again), registering("answer", DESTINATION) | again
        definition = write_definition(self.folder / "soak.yaml", *operators)
        dicom_config.add_source(self.engine, SourceNode(ae_title="MODALITY", host="127.0.0.1"))
        dicom_config.add_destination(
            self.engine, Destination(name=DESTINATION, ae_title="PEER", host="127.0.0.1", port=self.pacs.port)
        )
        settings = {"timeout": "1", "pipeline-soak": str(definition)}
        dicom_config.add_aetitle(self.engine, AeTitle(name=AETITLE, ae_title=AETITLE, processor_settings=settings))
        for _ in range(self.modalities):
            self.senders.append(Modality(self.settings.dicom_port, self.ledger, self.chance.randrange(2**32)))
            self.senders[-1].start()

    def _keep(self, event: Any, number: int) -> int:
        del number
        self.pacs.received.clear()  # they are many
        with self.ledger.sending("out"):
            content = _digest(event.request.DataSet.getvalue())
            threading.Event().wait(self.slow.uniform(0, SLOW_S))
            self.ledger.has_arrived(str(event.request.AffectedSOPInstanceUID), content)
        return 0

    def close(self) -> None:
        """Nobody sends, nothing is left."""
        for sender in self.senders:
            sender.ended.set()
        super().close()
        self.stack.close()

    def keep_busy(self) -> None:
        """The modalities do; a supervisor is all that is needed."""
        self.rises()

    def drain(self, within_s: float) -> None:
        """Until every study was sent, became a job, and its results have arrived."""
        self._eventually("every service answers", lambda: not self.rises() and look(self.settings).is_up, UP_WITHIN_S)
        for sender in self.senders:
            sender.ended.set()
        self._eventually("every study is sent", lambda: not any(sender.is_alive() for sender in self.senders), 60)
        self.tell("every study is sent")
        self._eventually("no group is open", lambda: not self._count(Group, GroupState.OPEN, GroupState.COMPLETE), 60)
        super().drain(within_s)
        under_way = DeliveryState.PENDING, DeliveryState.IN_PROGRESS
        self._eventually("every delivery is over", lambda: not self._count(Delivery, *under_way), within_s)
        self.tell("every delivery is over")

    def _count(self, model: type[Group] | type[Delivery], *states: Any) -> int:
        query = sa.select(sa.func.count()).select_from(model).where(sa.column("state").in_(states))
        with suppress(ServiceError, sa.exc.DBAPIError), self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())
        return 1

    def violations(self) -> Violations:
        """Everything that is not as it must be now."""
        rows = self.rows()
        with Session(self.engine) as session:
            facts = Facts(
                groups=list(session.exec(select(Group))),
                submissions=list(session.exec(select(Submission))),
                instances=list(session.exec(select(Instance))),
                rows=rows,
            )
            open_associations = session.exec(
                select(dicom_models.Association).where(dicom_models.Association.how == "")
            ).all()
            session.expunge_all()
        self.expected = {one.job_id: Expected("HEALTHY") for one in facts.submissions}
        wrong = [sender.problem for sender in self.senders if sender.problem]
        wrong += invariants.check_jobs(self.expected, rows)
        wrong += invariants.find_rows(self.engine)
        wrong += invariants.find_files(self.engine, self.house.store, rows)
        wrong += invariants.find_operators(self.settings.data_dir)
        wrong += invariants.check_flow_runs(invariants.flow_runs(look(self.settings).prefect_api_url), rows)
        wrong += check_instances(self.ledger, facts)
        wrong += check_groups(facts)
        wrong += self._find_payloads(facts)
        wrong += self._find_deliveries(rows)
        wrong += check_pacs(self.ledger, facts)
        wrong += [f"association {one.id} never ended" for one in open_associations]
        return wrong + find_spool(Places.of(self.settings).spool, self.settings.dicom_listeners or 1)

    def _find_payloads(self, facts: Facts) -> Violations:
        """Each job has exactly the instances of its group, as they were sent."""
        wrong = []
        for one in facts.submissions:
            job = facts.rows.get(one.job_id)
            if job is None:
                continue
            folder = self.house.store.folder(job.payload_id).input
            has = {path.stem: _digest(data_set_of(path)) for path in folder.rglob("*.dcm")}
            should = {uid: self.ledger.content.get(uid, "") for uid in facts.current(one.group_id)}
            if has != should:
                differ = sum(has[uid] != should[uid] for uid in has.keys() & should.keys())
                wrong.append(
                    f"job {job.id}: of its payload {len(should.keys() - has.keys())} instances are missing, "
                    f"{len(has.keys() - should.keys())} are too many, {differ} are not what was sent"
                )
        return wrong

    def _find_deliveries(self, rows: Mapping[uuid.UUID, Job]) -> Violations:
        """Each job that completed has one, and it succeeded with all its files."""
        wrong, found = [], defaultdict(list)
        for one in deliveries.list_deliveries(self.engine):
            found[uuid.UUID(one.job_id)].append(one)
            if one.state is not DeliveryState.SUCCEEDED:
                wrong.append(f"delivery {one.id} is {one.state}: {one.message}")
            elif unsent := [item for item in list_items(self.engine, one) if item.state is not ItemState.SENT]:
                wrong.append(f"delivery {one.id} succeeded, and {len(unsent)} of its files are {unsent[0].state}")
        done = [job.id for job in rows.values() if job.status is JobStatus.HEALTHY and job.state is JobState.STOPPED]
        return wrong + [
            f"job {job_id} has {len(found[job_id])} deliveries" for job_id in done if len(found[job_id]) != 1
        ]

    def summary(self) -> str:
        """What happened, for people."""
        ledger, again = self.ledger, self.ledger.sent.total() - len(self.ledger.sent)
        return (
            f"{super().summary()}; {len(ledger.sent)} instances, {ledger.answered.total()} answered with success, "
            f"{again} sent again, refused {dict(ledger.refused)}; {ledger.received} results received, "
            f"{len(ledger.arrived)} different ones"
        )


@dataclass(frozen=True)
class Facts:
    """The tables at one moment."""

    groups: list[Group]
    submissions: list[Submission]
    instances: list[Instance]
    rows: dict[uuid.UUID, Job]

    def current(self, group_id: uuid.UUID) -> set[str]:
        """SOP Instance UIDs of a group."""
        return {one.sop_instance_uid for one in self.instances if one.group_id == group_id and not one.superseded}


def check_instances(ledger: Ledger, facts: Facts) -> Violations:
    """Each answer stands for one row; each instance is in one group, or in one more for each time it was sent again.

    That can be told from a first sending only by people: a study is sent again to have its job made again.
    """
    wrong = []
    stored = Counter(one.sop_instance_uid for one in facts.instances)
    current = Counter(one.sop_instance_uid for one in facts.instances if not one.superseded)
    for uid in ledger.content.keys() | stored.keys():
        sent, answered = ledger.sent[uid], ledger.answered[uid]
        if not answered <= stored[uid] <= sent:
            wrong.append(f"instance {uid}: sent {sent} times, answered {answered} times, stored {stored[uid]} times")
        if not min(answered, 1) <= current[uid] <= sent:
            wrong.append(f"instance {uid}: sent {sent} times, and in {current[uid]} groups")
    paths = Counter(one.path for one in facts.instances)
    return wrong + [f"the file {path} is {count} instances" for path, count in paths.items() if count > 1]


def check_groups(facts: Facts) -> Violations:
    """Each has become its one job."""
    wrong = [f"group {one.id} is {one.state}: {one.message}" for one in facts.groups if one.state != "SUBMITTED"]
    made = Counter(one.group_id for one in facts.submissions if one.submitted and one.job_id in facts.rows)
    wrong += [f"group {one.id} has become {made[one.id]} jobs" for one in facts.groups if made[one.id] != 1]
    empty = [one.id for one in facts.groups if not facts.current(one.id)]
    return wrong + [f"group {group_id} has no instance" for group_id in empty]


def check_pacs(ledger: Ledger, facts: Facts) -> Violations:
    """The results of all jobs that completed are there, each once by its UID and always the same; no others are."""
    jobs = {one.group_id: facts.rows.get(one.job_id) for one in facts.submissions}
    done = {group for group, job in jobs.items() if job is not None and job.status is JobStatus.HEALTHY}
    uids = {one.sop_instance_uid for one in facts.instances if not one.superseded and one.group_id in done}
    missing = {produced(uid) for uid in uids} - ledger.arrived.keys()
    others = ledger.arrived.keys() - {produced(uid) for uid in ledger.content}
    wrong = [f"result {uid} never arrived" for uid in missing] + [f"{uid} is nobody's result" for uid in others]
    kinds = {uid: len(contents) for uid, contents in ledger.arrived.items()}
    return wrong + [f"result {uid} came as {count} different ones" for uid, count in kinds.items() if count > 1]


def find_spool(spool: Path, listeners: int) -> Violations:
    """No instance is left, and no journal but those of listeners that live."""
    left = [path.relative_to(spool) for path in (spool / "instances").rglob("*") if path.is_file()]
    wrong = [f"the spool still has {path}" for path in left]
    journals = sorted((spool / "journals").iterdir())
    if len(journals) > listeners:
        wrong.append(f"there are {len(journals)} journals of {listeners} listeners")
    return wrong


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
