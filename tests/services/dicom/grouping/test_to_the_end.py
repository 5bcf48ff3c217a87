"""From a journal to the results of a job that the pool ran."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

from dicom_spool import HandMade
from tiny.pipelines import scripted, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config, jobs
from clara_flow.records.dicom_models import AeTitle
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobState, JobStatus
from clara_flow.services.dicom.grouping.grouper import Grouper


def test_a_released_study_is_run_by_the_pool(house: House, tmp_path: Path) -> None:
    now, definition = datetime.now(UTC), write_definition(tmp_path / "tiny.yaml", scripted("a"))
    settings = {"pipeline-copy": str(definition), "timeout": "0"}
    row = AeTitle(name="TOEND", ae_title="TOEND", processor_settings=settings, created=now, updated=now)
    dicom_config.add_aetitle(house.engine, row)
    spool = house.settings.data_dir / "spool"  # on the disk of the payloads
    journal = HandMade(spool)
    association = journal.open("TOEND")
    uid = journal.store(association)
    journal.close(association)
    stop = threading.Event()
    thread = threading.Thread(target=Grouper(house, spool).run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: [job.state for job in of_tenant(house)] == [JobState.STOPPED], within_s=60)
    finally:
        stop.set()
        thread.join(30)
        dicom_config.delete_aetitle(house.engine, "TOEND")
    (job,) = of_tenant(house)
    assert job.status is JobStatus.HEALTHY
    folder = house.store.folder(job.payload_id)
    assert (folder.input / "1" / f"{uid}.dcm").read_bytes() == b"instance"
    assert folder.sealed("a") is not None


def of_tenant(house: House) -> list[Job]:
    return [job for job in jobs.list_jobs(house.engine) if job.tenant == "TOEND"]
