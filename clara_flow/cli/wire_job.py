"""The main job from the wire: a study sent to our listener becomes a job by itself, and its result goes to a PACS."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from rich.console import Console

from clara_flow.cli.demo_pacs import DemoPacs
from clara_flow.cli.main_job import Done, Order, platform_for, watch_job
from clara_flow.errors import ClaraFlowError, InputError, ServiceError
from clara_flow.settings import Settings

if TYPE_CHECKING:
    from clara_flow.deployments.trigger import House

AE_TITLE, SOURCE, DESTINATION = "DEMO-BRAIN", "DEMO-MODALITY", "DEMO-PACS"
PIPELINE = "brain-extraction"
TIMEOUT_S = 2
LOOPBACK = "127.0.0.1"
TRIGGER_S = 60.0  # until the study has become a job; beyond it something is wrong
DELIVERY_S = 60.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The job, and the SOP Instance UIDs that the PACS holds now."""

    done: Done
    instances: list[str]


def run_wire_job(settings: Settings, console: Console, study: Path, target: Path, pacs: DemoPacs) -> Delivered:
    """Send the study, follow the job that it becomes, wait until the PACS holds the result.

    Raises ServiceError when DICOM is switched off or something does not answer, JobFaulted, KeyboardInterrupt.
    """
    if not settings.dicom_port:
        raise ServiceError("the DICOM adapter", "it is switched off", remedy="Give CLARA_FLOW_DICOM_PORT a port.")
    with platform_for(settings, console) as platform:
        from clara_flow.deployments.trigger import House
        from clara_flow.infra.images.catalog import installed
        from clara_flow.records import jobs
        from clara_flow.records.database import connect

        house = House(settings=settings, engine=connect(platform.database_url), catalog=installed(settings.catalogs))
        began = configure(house, pacs)
        console.print(f"Sending the study to {AE_TITLE} at {settings.host}:{settings.dicom_port}", highlight=False)
        send(study, settings)
        with console.status("Waiting for the study to be complete"):
            job_id = _job_of_study(house, began)
        order = Order(target=target, arguments={}, keep=True)
        done = watch_job(platform, house, jobs.get_job(house.engine, job_id), console, order)
        with console.status(f"Waiting for {pacs.title} to have the result"):
            instances = _delivered(house, job_id, pacs)
        return Delivered(done=done, instances=instances)


def configure(house: House, pacs: DemoPacs) -> float:
    """What `clara-flow dicom aetitle|source|destination add` does. Returns when, as the database's clock has it."""
    import sqlalchemy as sa

    from clara_flow.records import dicom_config
    from clara_flow.records.dicom_models import AeTitle, Destination, SourceNode

    settings = {f"pipeline-{PIPELINE}": PIPELINE, "timeout": str(TIMEOUT_S), "argument-DESTINATION": DESTINATION}
    known = {row.name for row in dicom_config.list_aetitles(house.engine)}
    if AE_TITLE not in known:
        dicom_config.add_aetitle(house.engine, AeTitle(name=AE_TITLE, ae_title=AE_TITLE, processor_settings=settings))
    if SOURCE not in {row.ae_title for row in dicom_config.list_sources(house.engine)}:
        dicom_config.add_source(house.engine, SourceNode(ae_title=SOURCE, host=LOOPBACK))
    node = Destination(name=DESTINATION, ae_title=pacs.ae_title, host=LOOPBACK, port=pacs.port)
    if DESTINATION in {row.name for row in dicom_config.list_destinations(house.engine)}:
        dicom_config.update_destination(house.engine, DESTINATION, ae_title=pacs.ae_title, port=pacs.port)
    else:
        dicom_config.add_destination(house.engine, node)
    with house.engine.connect() as connection:
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())


def send(study: Path, settings: Settings) -> None:
    """C-STORE every file of the folder to our listener: by storescu where dcmtk is installed, else by pynetdicom.

    A listener that does not know the AE title yet is asked again: it hears of it in a moment. Raises ServiceError.
    """
    sender = _storescu if dcmtk("storescu") else _pynetdicom
    for pause_s in (0.2, 0.4, 0.8, 1.6, 3.2, 0.0):
        reason = sender(study, settings)
        if not reason:
            return
        time.sleep(pause_s)
    raise ServiceError("the DICOM adapter", f"the study could not be sent: {reason}", remedy="Look into its log.")


def dcmtk(program: str) -> str:
    """Where this program of dcmtk is; "" where it is not.

    pynetdicom has programs of the same names, which take other options, and puts them into the virtual environment.
    It has no dcmdump: what lies beside that is dcmtk's.
    """
    mark = shutil.which("dcmdump")
    found = Path(mark).with_name(program) if mark else None
    return str(found) if found is not None and found.exists() else ""


def _storescu(study: Path, settings: Settings) -> str:
    done = subprocess.run(
        [
            dcmtk("storescu"),
            "-aet",
            SOURCE,
            "-aec",
            AE_TITLE,
            "+sd",
            "+r",
            settings.host,
            str(settings.dicom_port),
            study,
        ],
        env={**os.environ, "TCP_NODELAY": "1"},  # dcmtk waits 40 ms for each answer without
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it said nothing"])[-1]


def _pynetdicom(study: Path, settings: Settings) -> str:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pynetdicom import AE

    def instances() -> Iterator[Path]:
        yield from sorted(path for path in study.rglob("*") if path.is_file())

    node = AE(ae_title=SOURCE)
    for path in instances():
        try:
            meta = dcmread(path, stop_before_pixels=True).file_meta
        except InvalidDicomError:
            raise InputError(f"{path} is no DICOM file") from None
        if not any(context.abstract_syntax == meta.MediaStorageSOPClassUID for context in node.requested_contexts):
            node.add_requested_context(meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID)
    association = node.associate(settings.host, settings.dicom_port, ae_title=AE_TITLE)
    if not association.is_established:
        return "the association was not accepted"
    try:
        for path in instances():
            status = association.send_c_store(path)
            if not status or status.Status != 0:
                return f"an instance was answered {f'0x{status.Status:04X}' if status else 'not at all'}"
    finally:
        association.release()
    return ""


def _job_of_study(house: House, began: float) -> UUID:
    """The job that the study sent since then has become."""
    import sqlalchemy as sa
    from sqlmodel import col

    from clara_flow.records.database import statements
    from clara_flow.records.dicom_models import Group, Submission

    query = (
        sa.select(col(Submission.job_id), col(Submission.submitted), col(Group.message))
        .join(Group, col(Group.id) == col(Submission.group_id))
        .where(col(Group.aetitle) == AE_TITLE, sa.func.extract("epoch", col(Group.opened)) >= began)
    )
    deadline = time.monotonic() + TRIGGER_S
    message = ""
    with statements(house.engine) as connection:
        while time.monotonic() < deadline:
            for job_id, submitted, told in connection.execute(query):
                message = told
                if submitted is not None:
                    return UUID(str(job_id))
            time.sleep(POLL_S)
    raise ClaraFlowError(f"the study has not become a job within {TRIGGER_S:g} s{f': {message}' if message else ''}")


def _delivered(house: House, job_id: UUID, pacs: DemoPacs) -> list[str]:
    """The instances that were delivered, when the PACS has them all."""
    from clara_flow.records import delivery_queries
    from clara_flow.records.dicom_models import DeliveryState

    deadline = time.monotonic() + DELIVERY_S
    while True:
        rows = delivery_queries.list_deliveries(house.engine, job_id=str(job_id))
        items = [item for row in rows for item in delivery_queries.list_items(house.engine, row)]
        if rows and all(row.state is DeliveryState.SUCCEEDED for row in rows):
            instances = [item.sop_instance_uid for item in items]
            if all(map(pacs.holds, instances)):
                return instances
        if any(row.state is DeliveryState.FAILED for row in rows) or time.monotonic() > deadline:
            told = "; ".join(f"{row.destination}: {row.state} {row.message}".strip() for row in rows)
            raise ClaraFlowError(f"the result did not reach {pacs.title} ({told or 'nothing was registered'})")
        time.sleep(POLL_S)
