"""From hand-made journals to jobs, with a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

from dicom_spool import HandMade
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import jobs
from clara_flow.records.dicom_models import AeTitle, Group, GroupState
from clara_flow.records.models import Job


def all_jobs(house: House) -> list[Job]:
    return jobs.list_jobs(house.engine)


def groups(house: House) -> list[Group]:
    return queries.list_groups(house.engine)


def files_of(house: House, job: Job) -> list[str]:
    return [file.name for file in house.store.folder(job.payload_id).input_manifest().files]


def test_a_study_becomes_a_job_of_its_files(
    lone_house: House, journal: HandMade, add_aetitle: Callable[..., AeTitle], running: Callable[..., object]
) -> None:
    add_aetitle(timeout="0")
    association = journal.open()
    uids = [journal.store(association, Modality="MR") for _ in range(3)]
    journal.close(association)
    with running():
        eventually(lambda: [group.state for group in groups(lone_house)] == [GroupState.SUBMITTED])
    (job,) = all_jobs(lone_house)
    assert sorted(files_of(lone_house, job)) == sorted(f"1/{uid}.dcm" for uid in uids)
    assert job.tenant == "BRAIN"
    assert job.name.startswith("brain-seg-20")
    assert job.metadata_ == {"Source": "BRAIN (ae-title)", "Instances": "3"}
