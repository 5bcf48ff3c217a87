"""Jobs of an AE title that de-identifies get cleaned copies, and nothing else of the study."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pydicom
import sqlalchemy as sa
from dicom_spool import HandMade
from pydicom.data import get_testdata_file
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config, jobs
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records.dicom_models import AeTitle, GroupState
from clara_flow.services.dicom.deidentify import Deidentifier, key_file
from clara_flow.services.dicom.grouping.grouper import Grouper

Running = Callable[..., AbstractContextManager[Grouper]]


def test_payloads_hold_cleaned_copies_only(
    engine: sa.Engine,
    lone_house: House,
    spool: Path,
    journal: HandMade,
    add_aetitle: Callable[..., AeTitle],
    running: Running,
) -> None:
    original = Path(str(get_testdata_file("CT_small.dcm")))
    before = pydicom.dcmread(original)
    add_aetitle(timeout="0")
    dicom_config.update_aetitle(engine, "BRAIN", deidentify="basic")
    association = journal.open()
    journal.store(association, uid=str(before.SOPInstanceUID), content=original.read_bytes())
    journal.close(association)
    with running():
        eventually(lambda: queries.list_groups(engine, states=[GroupState.SUBMITTED]), within_s=30)
    (job,) = jobs.list_jobs(engine)
    folder = lone_house.store.folder(job.payload_id)
    (file,) = folder.input_manifest().files
    after = pydicom.dcmread(folder.input / file.name)
    uid = Deidentifier.of(key_file(lone_house.settings)).uid(str(before.SOPInstanceUID))
    assert (after.SOPInstanceUID, file.name) == (uid, f"1/{uid}.dcm")
    assert after.PatientIdentityRemoved == "YES"
    assert str(before.PatientName) not in str(after)
    assert after.PixelData == before.PixelData
    assert list(spool.rglob("*.dcm")) == []


def test_a_file_that_cannot_be_cleaned_becomes_no_job(
    engine: sa.Engine,
    lone_house: House,
    journal: HandMade,
    add_aetitle: Callable[..., AeTitle],
    running: Running,
) -> None:
    add_aetitle(timeout="0", jobRetryDelay="10")
    dicom_config.update_aetitle(engine, "BRAIN", deidentify="basic")
    association = journal.open()
    journal.store(association, content=b"no DICOM at all")
    journal.close(association)
    with running():
        eventually(lambda: queries.list_groups(engine, states=[GroupState.FAILED]), within_s=30)
    assert jobs.list_jobs(engine) == []
    assert "cannot be de-identified" in queries.list_groups(engine)[0].message
