"""Fetches the inputs of inference requests from a DICOM node.

C-FIND for what is named by patient; then C-GET where the node takes it and brings something by it, else C-MOVE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from pydicom.dataset import Dataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, StoragePresentationContexts, build_role, evt
from pynetdicom.association import Association

from clara_flow.errors import ClaraFlowError, InputError, StorageError
from clara_flow.services.dicom.inference_basket import Basket
from clara_flow.services.dicom.inference_move import MOVE, Landing, move
from clara_flow.services.dicom.inference_request import DIMSE, Inputs, Resource, Wanted
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.negotiation import is_uid
from clara_flow.settings import Settings

FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # of the Study Root Query/Retrieve Information Model (PS3.4 Annex C.6.2)
GET = "1.2.840.10008.5.1.4.1.2.2.3"
SERVICES = {GET: "C-GET", MOVE: "C-MOVE"}
MOST_CLASSES = 120  # presentation contexts of an association are 128 at most (PS3.8 section 9.3.2.2)
PENDING = frozenset({0xFF00, 0xFF01})
CONNECT_S, ANSWER_S = 30.0, 300.0

Fault = Callable[[str], None]


def fetch_dimse(
    settings: Settings,
    number: int,
    resource: Resource,
    inputs: Inputs,
    basket: Basket,
    landing: Landing,
    on_fault: Fault,
) -> None:
    """Everything of `inputs` that a DICOM node has, by one retrieval for each study, series or instance that is named.

    landing     where C-MOVE sends to.
    """
    what = f"DIMSE resource {number}"
    wanted, retrieval = list(inputs.objects), _Retrieval(settings, resource, basket, landing)
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
            retrieval.fetch(one)
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


class _NotTaken(InputError):
    """The node does not take that service: it needs not be asked again."""


class _Retrieval:
    """Studies, series and instances of one node, one after the other."""

    def __init__(self, settings: Settings, resource: Resource, basket: Basket, landing: Landing) -> None:
        self._settings, self._resource, self._basket, self._landing = settings, resource, basket, landing
        self._refused: _NotTaken | None = None  # of C-GET
        self._count = 0
        self._trouble: ClaraFlowError | None = None  # of ours: the disk, or the process ends

    def fetch(self, wanted: Wanted) -> None:
        """Raises InputError when not everything came; ServiceError, StorageError, Stopped and NoRoom."""
        self._count = 0
        refused: InputError | None = self._refused
        if refused is None:
            try:
                self._get(wanted)
                return
            except _NotTaken as error:
                refused = self._refused = error
            except InputError as error:
                if self._count:
                    raise
                refused = error
        self._basket.check()
        try:
            aetitle = self._landing.aetitle()
            with self._association(MOVE, []) as association:
                move(association, _query(wanted), wanted, aetitle, self._landing, self._basket)
        except InputError as error:
            raise InputError(f"{refused}; {error}") from None

    @contextmanager
    def _association(self, asked: str, taken: Sequence[UID]) -> Iterator[Association]:
        """For a service, and storage classes that we are the SCP of (C-GET).

        Raises InputError when there is none or it is broken off, _NotTaken when it does not take the service.
        """
        entity = _entity(self._settings)
        entity.add_requested_context(asked)
        for storage in taken:
            entity.add_requested_context(storage, list(AllTransferSyntaxes))
        host, port, called = _address(self._resource)
        association = entity.associate(
            host,
            port,
            ae_title=called,
            ext_neg=[build_role(storage, scp_role=True) for storage in taken],
            evt_handlers=[(evt.EVT_C_STORE, self._store)],
        )
        if any(context.abstract_syntax == asked for context in association.rejected_contexts):
            association.release()
            raise _NotTaken(f"it does not take {SERVICES[asked]}")
        _require(association)
        try:
            yield association
        except RuntimeError:
            raise InputError("it broke off the association") from None
        finally:
            with suppress(RuntimeError):
                association.release()

    def _get(self, wanted: Wanted) -> None:
        classes = [UID(str(context.abstract_syntax)) for context in StoragePresentationContexts[:MOST_CLASSES]]
        code = int(Status.PROCESSING_FAILURE)
        with self._association(GET, classes) as association:
            for status, _ in association.send_c_get(_query(wanted), GET):
                code = status.get("Status", Status.PROCESSING_FAILURE)
                if self._trouble is not None:
                    association.abort()
                    break
        if self._trouble is not None:
            raise self._trouble
        if code != Status.SUCCESS:
            raise InputError(f"it answers C-GET with status 0x{code:04X}")
        if not self._count:
            raise InputError("nothing was sent by C-GET")

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


def _query(wanted: Wanted) -> Dataset:
    """The identifier of C-GET and C-MOVE (PS3.4 C.4.2.1.4)."""
    query = Dataset()
    query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", wanted.study
    if wanted.series:
        query.QueryRetrieveLevel, query.SeriesInstanceUID = "SERIES", wanted.series
    if wanted.instance:
        query.QueryRetrieveLevel, query.SOPInstanceUID = "IMAGE", wanted.instance
    return query
