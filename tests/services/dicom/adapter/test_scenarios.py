"""Studies from the wire become jobs: the scenarios of the specification (4.2), late instances, groups that cannot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dicom_mpps import begun, performed, tell
from dicom_peers import data_set_bytes, instance, new_uid, storescu, study_of
from pydicom.dataset import Dataset
from services.dicom.adapter.adapter_world import AdapterWorld
from waiting import eventually

from clara_flow.records import dicom_group_queries as queries
from clara_flow.records.dicom_models import Group, GroupState
from clara_flow.records.state_machine import JobPriority


def as_sent(instances: list[Dataset]) -> dict[str, bytes]:
    return {str(made.SOPInstanceUID): data_set_bytes(made) for made in instances}


def test_one_study_over_several_associations_for_three_pipelines(adapter: AdapterWorld, tmp_path: Path) -> None:
    """Scenario (a): three jobs, each with all instances."""
    aetitle = adapter.aetitle(*(adapter.pipeline() for _ in range(3)), timeout_s=3)
    study = study_of(9)
    for number in range(3):
        storescu(adapter.port, aetitle, study[3 * number : 3 * number + 3], tmp_path / str(number))
    made = adapter.completed(aetitle, 3)
    assert [adapter.payload(job) for job in made] == [as_sent(study)] * 3
    (group,) = adapter.groups(aetitle)
    assert (group.state, group.instances) == (GroupState.SUBMITTED, 9)
    assert [job.name.rsplit("-", 1)[0] for job in made] == [f"{aetitle.lower()}-p{number}" for number in (1, 2, 3)]


def test_three_studies_on_one_association(adapter: AdapterWorld) -> None:
    """Scenario (b): a job for each."""
    aetitle = adapter.aetitle()
    studies = [study_of(2) for _ in range(3)]
    adapter.send(aetitle, [one for both in zip(*studies, strict=True) for one in both])  # one beside the other
    got = [adapter.payload(job) for job in adapter.completed(aetitle, 3)]
    assert sorted(map(sorted, got)) == sorted(sorted(as_sent(study)) for study in studies)


def test_four_instances_each_on_its_own_association(adapter: AdapterWorld) -> None:
    """Scenario (c): one job."""
    aetitle, study = adapter.aetitle(timeout_s=3), study_of(4)
    for one in study:
        adapter.send(aetitle, [one])
    (job,) = adapter.completed(aetitle, 1)
    assert adapter.payload(job) == as_sent(study)


def is_overdue(group: Group) -> bool:
    """Whether nothing came for its timeout, and the grouper has had a second to see that."""
    return group.due is not None and datetime.now(UTC) > group.due + timedelta(seconds=1)


def test_a_modality_that_says_what_it_makes(adapter: AdapterWorld) -> None:
    """Pauses that are longer than the timeout; one job with all, at once when the modality says that it was all."""
    aetitle, study = adapter.aetitle(timeout_s=0.5, expect="mpps"), study_of(3)
    uid, step = str(study[0].StudyInstanceUID), new_uid("1.2.826.0.1.3680043.10.543.9.")
    assert tell(adapter.port, aetitle, step, begun(uid), begins=True).Status == 0
    for part in (study[:1], study[1:]):
        adapter.send(aetitle, part)
        eventually(lambda part=part: [one.instances for one in adapter.groups(aetitle)] == [1 if len(part) == 1 else 3])
        eventually(lambda: is_overdue(adapter.groups(aetitle)[0]))
        (group,) = adapter.groups(aetitle)
        assert group.state is GroupState.OPEN
    assert group.instances == 3
    made = {str(study[0].SeriesInstanceUID): [str(one.SOPInstanceUID) for one in study]}
    assert tell(adapter.port, aetitle, step, performed("COMPLETED", made)).Status == 0
    (job,) = adapter.completed(aetitle, 1)
    assert adapter.payload(job) == as_sent(study)
    (group,) = adapter.groups(aetitle)
    assert group.rule == "all 3 expected instances came (its modality, by MPPS)"
    assert 'clara_flow_procedure_steps{status="COMPLETED"}' in adapter.gateway.get("/metrics").text


@pytest.mark.parametrize("late", ["new", "rerun", "ignore"])
def test_an_instance_that_comes_late(adapter: AdapterWorld, late: str) -> None:
    aetitle, study = adapter.aetitle(late=late), study_of(2)
    adapter.send(aetitle, study)
    adapter.completed(aetitle, 1)
    after = instance(study[0].StudyInstanceUID)
    adapter.send(aetitle, [after])
    if late == "ignore":
        assert adapter.group_is(aetitle, GroupState.DISCARDED).amends == adapter.groups(aetitle)[0].id
        assert len(adapter.jobs(aetitle)) == 1
        return
    first, second = adapter.completed(aetitle, 2)
    assert adapter.payload(first) == as_sent(study)
    assert adapter.payload(second) == as_sent([after] if late == "new" else [*study, after])


def test_a_group_whose_pipeline_is_unknown_keeps_nobody(adapter: AdapterWorld) -> None:
    lost = adapter.aetitle("/nowhere/pipeline.yaml", adapter.pipeline())
    other = adapter.aetitle()
    for aetitle in (lost, other):
        adapter.send(aetitle, study_of(1))
    adapter.completed(other, 1)
    adapter.completed(lost, 1)  # of the pipeline that there is
    group = adapter.group_is(lost, GroupState.FAILED)
    assert "p1: " in group.message
    assert "/nowhere/pipeline.yaml" in group.message
    unmade, made = queries.submissions_of(adapter.engine, group.id)
    assert (unmade.submitted, made.submitted is not None) == (None, True)


def test_priority_and_tenant(adapter: AdapterWorld) -> None:
    aetitle = adapter.aetitle(priority="immediate")
    adapter.send(aetitle, study_of(1))
    (job,) = adapter.completed(aetitle, 1)
    assert (job.priority, job.tenant) == (JobPriority.IMMEDIATE, aetitle)


def test_what_became_a_job_leaves_the_spool(adapter: AdapterWorld) -> None:
    aetitle = adapter.aetitle()
    adapter.send(aetitle, study_of(3))
    adapter.completed(aetitle, 1)
    adapter.group_is(aetitle, GroupState.SUBMITTED)
    with adapter.engine.connect() as connection:
        paths = connection.exec_driver_sql(
            "SELECT path FROM dicom_instances JOIN dicom_groups ON dicom_groups.id = group_id WHERE aetitle = %s",
            (aetitle,),
        ).scalars()
        assert not [path for path in paths if (adapter.places.spool / path).exists()]
