"""Asks the source of a study how many instances it has: a C-FIND, where the source is a destination of ours as well."""

from __future__ import annotations

import logging

import sqlalchemy as sa
from sqlmodel import col, select

from clara_flow.records.database import reading
from clara_flow.records.dicom_models import Destination, DestinationKind
from clara_flow.services.dicom.privacy import hashed

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
LARGEST = 10**6


def destination_of(engine: sa.Engine, calling_ae: str) -> Destination | None:
    """The destination that has the AE title of a source; None where there is none, or several."""
    query = select(Destination).where(
        col(Destination.ae_title) == calling_ae,
        col(Destination.kind) == DestinationKind.DIMSE,
        ~col(Destination.paused),
        ~col(Destination.tls),
    )
    with reading(engine) as session:
        hits = session.exec(query).all()
    return hits[0] if len(hits) == 1 else None


def study_instances(destination: Destination, study_uid: str, *, calling_ae: str) -> int | None:
    """Number of Study Related Instances (0020,1208) as the source tells it (Study Root, PS3.4 C.6.2.1).

    None when it does not: it cannot be reached, knows no such query or study, or does not count. Takes TIMEOUT_S for
    each step at most.
    """
    from pydicom.dataset import Dataset
    from pynetdicom import AE
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

    entity = AE(ae_title=calling_ae)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT_S
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = study_uid
    query.NumberOfStudyRelatedInstances = None
    association = entity.associate(destination.host, destination.port or 104, ae_title=destination.ae_title)
    if not association.is_established:
        log.info("destination %s does not answer, so it is not asked for study %s", destination.name, hashed(study_uid))
        return None
    counts = set()
    try:
        for status, answer in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
            if status and status.Status in {0xFF00, 0xFF01} and answer is not None:
                counts.add(answer.get("NumberOfStudyRelatedInstances"))
    except Exception as error:  # noqa: BLE001  whatever a peer's answer makes of pynetdicom
        log.info("destination %s cannot be asked: %s", destination.name, type(error).__name__)
        return None
    finally:
        association.release() if association.is_established else association.abort()
    count = counts.pop() if len(counts) == 1 else None
    return int(count) if count is not None and 0 < int(count) <= LARGEST else None
