"""A modality that tells of its procedure steps: what it says, and who says it (pynetdicom's own SCU)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dicom_peers import MODALITY
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE
from pynetdicom.sop_class import ModalityPerformedProcedureStep  # type: ignore[attr-defined]

Made = Mapping[str, Iterable[str]]  # series -> instances


def begun(*studies: str, status: str = "IN PROGRESS") -> Dataset:
    """What an N-CREATE says (PS3.4 Table F.7.2-1)."""
    said = Dataset()
    said.ScheduledStepAttributesSequence = [_scheduled(study) for study in studies]
    said.PatientName, said.PatientID, said.PatientBirthDate, said.PatientSex = "Nobody", "NOBODY-1", "", ""
    said.PerformedProcedureStepID, said.PerformedStationAETitle = "STEP-1", MODALITY
    said.PerformedProcedureStepStartDate, said.PerformedProcedureStepStartTime = "20260102", "120000"
    said.PerformedProcedureStepEndDate = said.PerformedProcedureStepEndTime = ""
    said.PerformedProcedureStepStatus, said.Modality = status, "CT"
    said.PerformedSeriesSequence = []
    return said


def performed(status: str | None, made: Made | None = None, *, sop_class: str = CTImageStorage) -> Dataset:
    """What an N-SET says."""
    said = Dataset()
    if status is not None:
        said.PerformedProcedureStepStatus = status
        said.PerformedProcedureStepEndDate, said.PerformedProcedureStepEndTime = "20260102", "120500"
    if made is not None:
        said.PerformedSeriesSequence = [_series(series, made[series], sop_class) for series in made]
    return said


def tell(port: int, called: str, uid: str | None, said: Dataset, *, begins: bool = False) -> Dataset:
    """Say it on an association of its own; the response."""
    node = AE(MODALITY)
    node.acse_timeout = node.dimse_timeout = node.network_timeout = 20
    node.add_requested_context(ModalityPerformedProcedureStep)
    association = node.associate("127.0.0.1", port, ae_title=called)
    assert association.is_established, f"{called} took no association"
    if begins:
        answer, _ = association.send_n_create(said, ModalityPerformedProcedureStep, uid)
    else:
        answer, _ = association.send_n_set(said, ModalityPerformedProcedureStep, uid)
    association.release()
    return answer


def _scheduled(study: str) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID, item.AccessionNumber, item.RequestedProcedureID = study, "ACCESSION-1", "PROCEDURE-1"
    return item


def _series(series: str, instances: Iterable[str], sop_class: str) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID, item.ProtocolName, item.OperatorsName = series, "Head", ""
    item.ReferencedNonImageCompositeSOPInstanceSequence = []
    item.ReferencedImageSequence = [_reference(uid, sop_class) for uid in instances]
    return item


def _reference(uid: str, sop_class: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item
