"""A modality says what it makes of a study (MPPS): its group waits for that, and no longer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from dicom_mpps import begun, performed, tell
from dicom_peers import store, study_of
from dicom_spool import HandMade
from pydicom.uid import CTImageStorage
from services.dicom.wire.listener_processes import Processes
from sqlmodel import col, select
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.errors import NotFound
from clara_flow.records import dicom_config, dicom_ingest, jobs
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records.database import reading
from clara_flow.records.dicom_lines import PerformedSeries, Step
from clara_flow.records.dicom_models import AeTitle, Group, GroupState, ProcedureStep, StepStatus
from clara_flow.services.dicom.grouping.explain import explain
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.journal import JournalReader
from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig, SourceRule
from clara_flow.services.dicom.procedure_steps import ProcedureSteps
from clara_flow.services.dicom.retention import Retention

Running = Callable[..., AbstractContextManager[Grouper]]
Add = Callable[..., AeTitle]
STEP, STUDY = "1.2.3.77", "1.2.3"
OPEN, SUBMITTED = GroupState.OPEN, GroupState.SUBMITTED


class Modality:
    """Its words and instances in a spool, as a listener leaves them there."""

    def __init__(self, journal: HandMade, house: House) -> None:
        self.journal, self.house = journal, house
        self.steps = ProcedureSteps(journal.root, fsync=False)

    def send(self, *uids: str) -> None:
        association = self.journal.open()
        for uid in uids:
            self.journal.store(association, uid=uid, study=STUDY)
        self.journal.close(association)

    def begin(self, step: str = STEP) -> None:
        self.steps.create(Step(uid=step, version=1, status=StepStatus.IN_PROGRESS, studies=(STUDY,)))
        self._note(step)

    def end(self, *made: str, status: StepStatus = StepStatus.COMPLETED, step: str = STEP) -> None:
        self.steps.change(step, status, (PerformedSeries("1.2.3.1", CTImageStorage, made),))
        self._note(step)

    def _note(self, step: str) -> None:
        association = self.journal.open()
        self.journal.step(association, self.steps.path_of(step))
        self.journal.close(association)

    def read(self) -> None:
        """All of it is in the tables; a grouper that is ended now has looked at its groups, too."""
        size = self.journal.path.stat().st_size
        eventually(lambda: dicom_ingest.offsets(self.house.engine) == {self.journal.name: size})

    def submitted(self) -> None:
        """Its group has become its job."""
        eventually(lambda: [one.state for one in queries.list_groups(self.house.engine)] == [SUBMITTED], within_s=30)

    def group(self) -> Group:
        (group,) = queries.list_groups(self.house.engine)
        return group


@pytest.fixture
def modality(journal: HandMade, lone_house: House) -> Modality:
    return Modality(journal, lone_house)


def test_a_step_that_goes_on_holds_its_study_beyond_the_timeout(
    modality: Modality, add_aetitle: Add, running: Running
) -> None:
    """The timeout is none at all; the modality ends its step, and the group is complete with what it has made."""
    add_aetitle(timeout="0", expect="mpps")
    modality.begin()
    modality.send("1.1")
    with running():
        modality.read()
    assert modality.group().state is OPEN
    (told,) = explain(modality.house.engine, STUDY)
    assert told.why == "waits for the end of a procedure step (MPPS), no longer than for 3600 s of silence"
    modality.end("1.1", "1.2", "1.3")
    modality.send("1.2")
    with running():
        modality.read()
    (told,) = explain(modality.house.engine, STUDY)
    assert told.why.startswith("waits for 1 of 3 instances that its modality made (MPPS)")
    assert [(step.named, step.here, step.missing) for step in told.steps] == [(3, 2, 1)]
    with running():
        modality.send("1.3")
        modality.submitted()
    assert modality.group().rule == "all 3 expected instances came (its modality, by MPPS)"
    assert (modality.group().instances, modality.group().expected) == (3, 3)
    assert len(jobs.list_jobs(modality.house.engine)) == 1


def test_the_word_that_ends_a_step_completes_its_study_at_once(
    modality: Modality, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="600", expect="mpps")
    modality.begin()
    modality.send("1.1", "1.2")
    with running():
        modality.read()
        modality.end("1.1", "1.2")
        modality.submitted()


def test_a_step_that_never_ends_is_not_waited_for_for_ever(
    modality: Modality, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0", expect="mpps", mppsTimeout="0.5")
    modality.begin()
    modality.send("1.1")
    with running():
        modality.submitted()
    assert modality.group().rule == "nothing came for 0.5 s, though the end of a procedure step was to come (MPPS)"


def test_a_step_that_was_discontinued_leaves_it_to_the_timeout(
    modality: Modality, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(timeout="0", expect="mpps")
    modality.begin()
    modality.send("1.1")
    modality.end("1.1", "1.2", status=StepStatus.DISCONTINUED)
    with running():
        modality.submitted()
    assert modality.group().rule == "nothing came for 0 s"


def test_a_study_of_two_steps_waits_for_both(modality: Modality, add_aetitle: Add, running: Running) -> None:
    add_aetitle(timeout="0", expect="mpps")
    for step in (STEP, "1.2.3.78"):
        modality.begin(step)
    modality.send("1.1", "1.2")
    modality.end("1.1")
    with running():
        modality.read()
    assert modality.group().state is OPEN
    modality.end("1.2", step="1.2.3.78")
    with running():
        modality.submitted()
    assert modality.group().expected == 2


def test_who_does_not_expect_it_is_not_held(modality: Modality, add_aetitle: Add, running: Running) -> None:
    add_aetitle(timeout="0")
    modality.begin()
    modality.send("1.1")
    with running():
        modality.submitted()


def test_explain_tells_of_a_study_that_is_only_announced(
    modality: Modality, add_aetitle: Add, running: Running
) -> None:
    add_aetitle(expect="mpps")
    modality.begin()
    with running():
        modality.read()
    with pytest.raises(NotFound, match=r"no instance of that study was received; its modality says .*: IN PROGRESS"):
        explain(modality.house.engine, STUDY)


@pytest.mark.parametrize("left", [b"{}", b"", None])
def test_a_step_that_cannot_be_read_keeps_nobody(
    modality: Modality, spool: Path, add_aetitle: Add, running: Running, left: bytes | None
) -> None:
    add_aetitle(timeout="0", expect="mpps")
    modality.begin()
    file = spool / modality.steps.path_of(STEP)
    file.unlink() if left is None else file.write_bytes(left)
    modality.send("1.1")
    with running():
        modality.submitted()


@pytest.fixture
def listeners(lone_house: House, spool: Path) -> Iterator[Processes]:
    """Real listener processes on the grouper's spool."""
    folder = lone_house.settings.data_dir
    rule = AeTitleRule(name="BRAIN", ae_title="BRAIN")
    source = SourceRule(ae_title="MODALITY", host="127.0.0.1")
    ListenerConfig(aetitles={"BRAIN": rule}, sources=(source,)).write(spool / "config.json")
    with ExitStack() as stack:
        yield Processes(folder, stack)


def test_what_was_answered_is_taken_once_though_each_listener_is_killed(
    lone_house: House, engine: sa.Engine, spool: Path, listeners: Processes, add_aetitle: Add, running: Running
) -> None:
    """kill -9 after each answer; the next word goes to another process."""
    add_aetitle(timeout="600", expect="mpps")
    study = study_of(2)
    uid, made = (
        str(study[0].StudyInstanceUID),
        {str(study[0].SeriesInstanceUID): [str(one.SOPInstanceUID) for one in study]},
    )

    def killed() -> None:
        listeners.running[-1].kill()
        listeners.running[-1].wait()

    listeners.start()
    assert tell(listeners.port, "BRAIN", STEP, begun(uid), begins=True).Status == 0
    killed()
    listeners.start()
    assert store(listeners.port, "BRAIN", study) == [0, 0]
    assert tell(listeners.port, "BRAIN", STEP, begun(uid), begins=True).Status == 0x0111
    assert tell(listeners.port, "BRAIN", STEP, performed("COMPLETED", made)).Status == 0
    killed()
    with running():
        eventually(lambda: [one.state for one in queries.list_groups(engine)] == [SUBMITTED], within_s=30)
        eventually(lambda: not JournalReader(spool).names())  # all were read to their ends
    with reading(engine) as session:
        (row,) = session.exec(select(ProcedureStep))
    assert (row.uid, row.version, row.status, row.studies) == (STEP, 2, StepStatus.COMPLETED, [uid])
    assert len(jobs.list_jobs(engine)) == 1
    assert json.loads((spool / ProcedureSteps(spool).path_of(STEP)).read_text())["version"] == 2


def test_ignored_classes_are_not_waited_for(modality: Modality, add_aetitle: Add, running: Running) -> None:
    row = add_aetitle(timeout="600", expect="mpps")
    dicom_config.update_aetitle(modality.house.engine, row.name, ignored_sop_classes=["1.2.840.10008.5.1.4.1.1.88.67"])
    modality.begin()
    modality.send("1.1")
    series = (
        PerformedSeries("1.2.3.1", CTImageStorage, ("1.1",)),
        PerformedSeries("1.2.3.9", "1.2.840.10008.5.1.4.1.1.88.67", ("1.9",)),
    )
    modality.steps.change(STEP, StepStatus.COMPLETED, series)
    modality._note(STEP)
    with running():
        modality.submitted()


def test_old_steps_are_forgotten_in_the_tables_and_in_the_spool(
    modality: Modality, engine: sa.Engine, spool: Path, running: Running
) -> None:
    modality.begin()
    modality.begin("1.2.3.78")
    with running():
        modality.read()
    os.utime(spool / modality.steps.path_of(STEP), (0, 0))
    with engine.begin() as connection:
        old = sa.update(ProcedureStep).where(col(ProcedureStep.uid) == STEP)
        connection.execute(old.values(changed=datetime.fromtimestamp(0, UTC)))
    assert Retention(modality.house).sweep() == {"procedure steps": 1}
    with reading(engine) as session:
        assert [row.uid for row in session.exec(select(ProcedureStep))] == ["1.2.3.78"]
    assert modality.steps.read(modality.steps.path_of(STEP)) is None
    assert modality.steps.read(modality.steps.path_of("1.2.3.78")) is not None
