"""What modalities say of their procedure steps, in the tables, and what it says of groups."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from records.teller import NOW, Teller
from sqlmodel import col, select

from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups, dicom_retention, dicom_steps
from clara_flow.records.database import reading
from clara_flow.records.dicom_ingest import GroupingRule, Ingested, Stepped
from clara_flow.records.dicom_lines import SERIES_TAG, PerformedSeries, Step
from clara_flow.records.dicom_models import Group, GroupState, ProcedureStep, StepStatus
from clara_flow.records.dicom_steps import StepFacts

CT, REPORT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.67"
IN_PROGRESS, COMPLETED, DISCONTINUED = StepStatus


@pytest.fixture(autouse=True)
def _no_rows(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE dicom_groups, dicom_associations, dicom_journals CASCADE"))
        connection.execute(sa.text("TRUNCATE dicom_procedure_steps"))


class Speaker(Teller):
    """Tells of instances, and of what a modality says."""

    def send(self, *uids: str, study: str = "1.2", aetitle: str = "BRAIN") -> Ingested:
        """On one association that is released."""
        opened = self.open(called_ae=aetitle, aetitle=aetitle)
        stored = [self.store(opened, uid, study, sop_class_uid=CT) for uid in uids]
        return self.tell(opened, *stored, self.close(opened))

    def say(
        self,
        *made: str,
        status: StepStatus = IN_PROGRESS,
        uid: str = "7.7",
        version: int = 1,
        studies: tuple[str, ...] = ("1.2",),
        more: tuple[PerformedSeries, ...] = (),
    ) -> Ingested:
        """What a modality says of a step that has made these instances."""
        series = (PerformedSeries("1.2.1", CT, made), *more) if made else more
        step = Step(uid=uid, version=version, status=status, studies=studies, series=series)
        return self.tell(Stepped(association=uuid.uuid4(), at=NOW, step=step))

    def group(self, study: str = "1.2") -> Group:
        """The newest of a study."""
        return next(row for row in queries.list_groups(self.engine) if row.study_uid == study)

    def steps(self, study: str = "1.2", ignored: tuple[str, ...] = ()) -> list[StepFacts]:
        return dicom_steps.steps_of(self.engine, self.group(study).id, ignored)


@pytest.fixture
def teller(engine: sa.Engine) -> Speaker:
    return Speaker(engine)


def test_a_step_is_one_row_and_its_last_word_counts(engine: sa.Engine, teller: Speaker) -> None:
    teller.say(version=1)
    teller.say("a", "b", version=3, status=COMPLETED)
    teller.say("x", version=2)  # another journal's, read late
    with reading(engine) as session:
        (row,) = session.exec(select(ProcedureStep))
    assert (row.uid, row.version, row.status, row.studies) == ("7.7", 3, COMPLETED, ["1.2"])
    assert row.series == [{"series": "1.2.1", "sop_class": CT, "instances": ["a", "b"]}]
    assert dicom_steps.statuses_of(engine, "1.2") == [COMPLETED]
    assert dicom_steps.statuses_of(engine, "1") == []


def test_open_groups_of_the_study_are_told(teller: Speaker) -> None:
    teller.send("a")
    teller.send("c", study="1.3")
    assert teller.say(studies=("1.2", "1.9")).spoken_of == {teller.group().id}
    dicom_groups.discard(teller.engine, teller.group().id)
    assert teller.say(version=2).spoken_of == set()


def test_what_came_of_what_a_step_made(teller: Speaker) -> None:
    teller.send("a")
    teller.say("a", "b", "c", status=COMPLETED)
    assert teller.steps() == [StepFacts(COMPLETED, named=3, here=1, missing=2)]
    teller.send("b", "c", "d")
    assert teller.steps() == [StepFacts(COMPLETED, named=3, here=3, missing=0)]


def test_a_step_that_has_made_nothing(teller: Speaker) -> None:
    teller.send("a")
    teller.say()
    teller.say(uid="7.8", status=DISCONTINUED)
    teller.say(uid="7.9", studies=("1.3",))  # another study's
    assert teller.steps() == [StepFacts(IN_PROGRESS), StepFacts(DISCONTINUED)]


def test_an_instance_that_two_series_name_counts_once(teller: Speaker) -> None:
    teller.send("a")
    teller.say("a", status=COMPLETED, more=(PerformedSeries("1.2.2", REPORT, ("a", "r")),))
    assert teller.steps() == [StepFacts(COMPLETED, named=2, here=1, missing=1)]


def test_what_the_ae_title_ignores_does_not_count(teller: Speaker) -> None:
    teller.send("a")
    teller.say("a", status=COMPLETED, more=(PerformedSeries("1.2.2", REPORT, ("r",)),))
    assert teller.steps(ignored=(REPORT,)) == [StepFacts(COMPLETED, named=1, here=1, missing=0)]


def test_what_is_in_an_earlier_group_of_the_study_is_not_missing(teller: Speaker) -> None:
    teller.send("a", "b")
    dicom_groups.retry(teller.engine, teller.group().id)  # made complete by hand
    teller.send("c")
    teller.say("a", "b", "c", "d", status=COMPLETED)
    assert teller.group().amends is not None
    assert teller.steps() == [StepFacts(COMPLETED, named=4, here=1, missing=1)]


def test_what_was_discarded_is_missing(teller: Speaker) -> None:
    teller.send("a", "b")
    dicom_groups.discard(teller.engine, teller.group().id)
    teller.send("a")
    teller.say("a", "b", status=COMPLETED)
    (open_group,) = queries.list_groups(teller.engine, states=[GroupState.OPEN])
    assert dicom_steps.steps_of(teller.engine, open_group.id) == [StepFacts(COMPLETED, named=2, here=1, missing=1)]


def test_a_step_for_two_studies(teller: Speaker) -> None:
    """What came with the other study is none of this one's."""
    teller.say("a", "b", "c", status=COMPLETED, studies=("1.2", "1.3"))
    teller.send("a", "b")
    assert teller.steps() == [StepFacts(COMPLETED, named=3, here=2, missing=1)]
    teller.send("c", study="1.3")
    assert teller.steps() == [StepFacts(COMPLETED, named=2, here=2, missing=0)]
    assert teller.steps("1.3") == [StepFacts(COMPLETED, named=1, here=1, missing=0)]


def test_another_ae_title_has_to_get_its_own(teller: Speaker) -> None:
    teller.say("a", "b", status=COMPLETED)
    teller.send("a", "b")
    teller.send("a", aetitle="CHEST")
    assert teller.group().aetitle == "CHEST"
    assert teller.steps() == [StepFacts(COMPLETED, named=2, here=1, missing=1)]


def test_groups_that_are_no_studies_are_not_told(engine: sa.Engine) -> None:
    teller = Speaker(engine, BRAIN=GroupingRule(group_tag=SERIES_TAG))
    teller.send("a")
    assert teller.say("a", status=COMPLETED).spoken_of == set()
    assert teller.steps("") == []


def test_old_steps_are_forgotten(engine: sa.Engine, teller: Speaker) -> None:
    teller.say()
    teller.say(uid="7.8")
    age_s = (datetime.now(UTC) - NOW).total_seconds()
    assert dicom_retention.forget_steps(engine, age_s + 3600, 10) == 0
    assert [dicom_retention.forget_steps(engine, age_s - 3600, 1) for _ in range(3)] == [1, 1, 0]
    with reading(engine) as session:
        assert session.exec(select(sa.func.count(col(ProcedureStep.uid)))).one() == 0
