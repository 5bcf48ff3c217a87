"""Fetches the inputs of inference requests from a DICOM node: C-FIND for what is named by patient, then C-GET.

C-MOVE is not used: what it brings comes through the listener, to an AE title, and becomes that AE title's jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pydicom.dataset import Dataset
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, StoragePresentationContexts, build_role, evt
from pynetdicom.association import Association

from clara_flow.errors import ClaraFlowError, InputError, StorageError
from clara_flow.services.dicom.inference_basket import Basket
from clara_flow.services.dicom.inference_request import DIMSE, Inputs, Resource, Wanted
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.negotiation import is_uid
from clara_flow.settings import Settings

FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # of the Study Root Query/Retrieve Information Model (PS3.4 Annex C.6.2)
GET = "1.2.840.10008.5.1.4.1.2.2.3"
MOST_CLASSES = 120  # presentation contexts of an association are 128 at most (PS3.8 section 9.3.2.2)
PENDING = frozenset({0xFF00, 0xFF01})
CONNECT_S, ANSWER_S = 30.0, 300.0

Fault = Callable[[str], None]


def fetch_dimse(
    settings: Settings, number: int, resource: Resource, inputs: Inputs, basket: Basket, on_fault: Fault
) -> None:
    """Everything of `inputs` that a DICOM node has, one C-GET for each study, series or instance that is named."""
    what = f"DIMSE resource {number}"
    wanted = list(inputs.objects)
    try:
        wanted += _studies(settings, resource, inputs)
    except InputError as error:
        on_fault(f"{what}: {error}")
    for one in wanted:
        basket.check()
        item = f"{number}:{one.study}/{one.series}/{one.instance}"
        if basket.has(item):
            continue
        try:
            _Retrieval(settings, resource, basket).get(one)
        except InputError as error:
            on_fault(f"{what}: {error}")
        else:
            basket.note(item)


def _entity(settings: Settings) -> AE:
    entity = AE(ae_title=settings.dicom_scu_ae_title)
    entity.connection_timeout = CONNECT_S
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ANSWER_S
    return entity


def _address(resource: Resource) -> tuple[str, int, str]:
    """Host, port and called AE title of an address that was checked."""
    match = DIMSE.fullmatch(resource.connection.uri)
    if match is None:
        raise InputError("it has no address dimse://AETITLE@host:port")
    return match["host"].strip("[]"), int(match["port"]), match["called"]


def _require(association: Association) -> None:
    if not association.is_established:
        raise InputError("it " + ("rejects the association" if association.is_rejected else "cannot be reached"))


def _studies(settings: Settings, resource: Resource, inputs: Inputs) -> list[Wanted]:
    """What C-FIND finds for patients and accession numbers. Raises InputError."""
    queries = [("PatientID", one) for one in inputs.patient_ids]
    queries += [("AccessionNumber", one) for one in inputs.accession_numbers]
    if not queries:
        return []
    entity = _entity(settings)
    entity.add_requested_context(FIND)
    host, port, called = _address(resource)
    association = entity.associate(host, port, ae_title=called)
    _require(association)
    found: list[Wanted] = []
    try:
        for keyword, value in queries:
            query = Dataset()
            query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", ""
            setattr(query, keyword, value)
            before = len(found)
            for status, answer in association.send_c_find(query, FIND):
                code = status.get("Status", Status.PROCESSING_FAILURE)
                if code in PENDING and answer is not None and is_uid(str(answer.get("StudyInstanceUID", ""))):
                    found.append(Wanted(str(answer.StudyInstanceUID)))
                elif code not in {*PENDING, Status.SUCCESS}:
                    raise InputError(f"it answers the query for {keyword} with status 0x{code:04X}")
            if len(found) == before:
                raise InputError(f"it has nothing for the {keyword}")
    except ValueError:
        raise InputError("it does not take queries of the study root model") from None
    finally:
        association.release()
    return found


class _Retrieval:
    """One C-GET."""

    def __init__(self, settings: Settings, resource: Resource, basket: Basket) -> None:
        self._settings, self._resource, self._basket = settings, resource, basket
        self._count = 0
        self._trouble: ClaraFlowError | None = None  # of ours: the disk, or the process ends

    def get(self, wanted: Wanted) -> None:
        """Raises InputError when not everything came; StorageError, Stopped and NoRoom as the basket does."""
        entity = _entity(self._settings)
        entity.add_requested_context(GET)
        contexts = [context.abstract_syntax for context in StoragePresentationContexts[:MOST_CLASSES]]
        for one in contexts:
            entity.add_requested_context(str(one), list(AllTransferSyntaxes))
        host, port, called = _address(self._resource)
        association = entity.associate(
            host,
            port,
            ae_title=called,
            ext_neg=[build_role(str(one), scp_role=True) for one in contexts],
            evt_handlers=[(evt.EVT_C_STORE, self._store)],
        )
        _require(association)
        try:
            self._ask(association, wanted)
        except ValueError:
            raise InputError("it does not take C-GET of the study root model") from None
        finally:
            with suppress(RuntimeError):
                association.release()
        if self._trouble is not None:
            raise self._trouble
        if not self._count:
            raise InputError("nothing was sent")

    def _ask(self, association: Association, wanted: Wanted) -> None:
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", wanted.study
        if wanted.series:
            query.QueryRetrieveLevel, query.SeriesInstanceUID = "SERIES", wanted.series
        if wanted.instance:
            query.QueryRetrieveLevel, query.SOPInstanceUID = "IMAGE", wanted.instance
        code = int(Status.PROCESSING_FAILURE)
        for status, _ in association.send_c_get(query, GET):
            code = status.get("Status", Status.PROCESSING_FAILURE)
            if self._trouble is not None:
                association.abort()
                return
        if code != Status.SUCCESS:
            raise InputError(f"it answers C-GET with status 0x{code:04X}")

    def _store(self, event: evt.Event) -> int:
        """An instance, kept byte for byte."""
        try:
            self._basket.check()
            with self._basket.instance() as file:
                file.write(event.encoded_dataset())
        except InputError:
            return Status.CANNOT_UNDERSTAND
        except ClaraFlowError as error:
            self._trouble = error
            return Status.OUT_OF_RESOURCES if isinstance(error, StorageError) else Status.PROCESSING_FAILURE
        self._count += 1
        return Status.SUCCESS
