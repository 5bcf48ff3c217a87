"""Small studies for DICOMweb's tests, in the spool and the tables as listener and grouper would have put them."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from fastapi import FastAPI
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from clara_flow.deployments.trigger import House
from clara_flow.records.database import transaction
from clara_flow.records.dicom_models import Group, Instance
from clara_flow.services import problems
from clara_flow.services.dicom import web_routes, web_store
from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig
from clara_flow.services.dicom.places import Places

BRAIN, LUNG = "BRAIN", "LUNG"


def slices(
    *, series: Sequence[int] = (2,), patient: str = "P1", name: str = "Doe^Jane", **more: object
) -> list[Dataset]:
    """A CT study with so many instances in each of its series."""
    study, made = generate_uid(), []
    for number, count in enumerate(series, 1):
        series_uid = generate_uid()
        for index in range(count):
            one = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
            one.StudyInstanceUID, one.SeriesInstanceUID = study, series_uid
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            one.PatientID, one.PatientName, one.SeriesNumber, one.InstanceNumber = patient, name, number, index + 1
            for keyword, value in more.items():
                setattr(one, keyword, value)
            made.append(one)
    return made


def encoded(dataset: Dataset) -> bytes:
    """The file of a dataset."""
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def application(house: House) -> FastAPI:
    """DICOMweb alone."""
    app = FastAPI()
    app.include_router(web_routes.router(house))
    app.include_router(web_store.router(house))
    problems.install(app)
    return app


@dataclass
class Archive:
    """Puts instances where the adapter keeps them."""

    house: House

    @property
    def spool(self) -> Path:
        return Places.of(self.house.settings).spool

    def configure(self, **rules: object) -> None:
        """Two AE titles; the name of the first is not its AE title."""
        aetitles = {
            BRAIN: AeTitleRule(name="brain-ct", ae_title=BRAIN, **rules),  # type: ignore[arg-type]
            LUNG: AeTitleRule(name=LUNG, ae_title=LUNG),
        }
        ListenerConfig(aetitles=aetitles).write(Places.of(self.house.settings).listener_config)

    def receive(self, datasets: Sequence[Dataset], aetitle: str = "brain-ct") -> uuid.UUID:
        """As if these had come in through AE title `aetitle` (its name); returns the group."""
        now, association = datetime.now(UTC), uuid.uuid4()
        group = Group(
            aetitle=aetitle, key_digest=uuid.uuid4().hex, study_uid=datasets[0].StudyInstanceUID, opened=now,
            last_arrival=now, instances=len(datasets),
        )  # fmt: skip
        rows = []
        for number, dataset in enumerate(datasets):
            path = Path("instances") / str(association) / f"{number}.dcm"
            (self.spool / path).parent.mkdir(parents=True, exist_ok=True)
            (self.spool / path).write_bytes(encoded(dataset))
            rows.append(
                Instance(
                    group_id=group.id, sop_instance_uid=dataset.SOPInstanceUID, sop_class_uid=dataset.SOPClassUID,
                    series_uid=dataset.SeriesInstanceUID, study_uid=dataset.StudyInstanceUID,
                    transfer_syntax=str(dataset.file_meta.TransferSyntaxUID), path=str(path),
                    size_bytes=(self.spool / path).stat().st_size, association=association, arrived=now,
                    attributes={"Modality": dataset.Modality},
                )
            )  # fmt: skip
        with transaction(self.house.engine) as session:
            session.add(group)
            session.flush()
            session.add_all(rows)
        return group.id

    def journal(self) -> list[dict[str, object]]:
        """What stands in the spool's journals, oldest first."""
        lines = [line for path in sorted((self.spool / "journals").glob("*")) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]
