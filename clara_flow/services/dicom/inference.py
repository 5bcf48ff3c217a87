"""REST inference requests become jobs: their inputs are fetched, as often as it takes, then the job is made.

Rows are the queue. A request that a process had in hand when it ended is taken up again, with what it had fetched.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from clara_flow.deployments.trigger import House, create_job
from clara_flow.errors import ClaraFlowError, NotFound, PlatformError
from clara_flow.records import inference, jobs
from clara_flow.records.dicom_models import InferenceRequest, InferenceState, InferenceStatus
from clara_flow.records.doorbell import Doorbell
from clara_flow.records.durable import remove_tree
from clara_flow.records.models import BY_REQUEST, INSTANCES, TRIGGER
from clara_flow.services.dicom.grouping.names import job_name
from clara_flow.services.dicom.grouping.pipelines import Pipelines
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.inference_basket import Basket, NoRoom, Stopped
from clara_flow.services.dicom.inference_fetch import fetch_dicomweb, fetch_fhir
from clara_flow.services.dicom.inference_request import Order, parse
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.space import SpaceCheck

log = logging.getLogger(__name__)

NAME = "inference"
AT_ONCE = 4
LOOK_S = 1.0
NO_ROOM_S = 30.0
OUTPUTS = "outputResources"
SHOWN_FAULTS = 5


class InferenceWorker:
    """Works at requests, several at once."""

    def __init__(self, house: House) -> None:
        self.house = house
        settings = house.settings
        self._folder = Places.of(settings).work / NAME
        self._heartbeats = Heartbeats(Places.of(settings).heartbeats)
        self._space = SpaceCheck(settings.data_dir, settings.dicom_watermark_percent, settings.dicom_reserve_mib)
        self._pipelines = Pipelines(house)
        self._in_hand: dict[str, Future[None]] = {}

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. Raises ServiceError when the database is away: begun again, it goes on."""
        doorbell = Doorbell(self.house.engine, (inference.CHANNEL,))
        threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=NAME)
        try:
            self._sweep()
            while not stop.is_set():
                self._start_due(threads, stop)
                self._heartbeats.beat(NAME, in_hand=len(self._in_hand))
                doorbell.wait(LOOK_S)
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
            doorbell.close()

    def _start_due(self, threads: ThreadPoolExecutor, stop: threading.Event) -> None:
        self._in_hand = {number: future for number, future in self._in_hand.items() if not future.done()}
        room = AT_ONCE - len(self._in_hand)
        if room > 0:
            for row in inference.due(self.house.engine, limit=room, but=self._in_hand):
                self._in_hand[row.transaction_id] = threads.submit(self._safely, row, stop)

    def _safely(self, row: InferenceRequest, stop: threading.Event) -> None:
        """One request's trouble is no other's."""
        try:
            self.attempt(row, stop)
        except Stopped:
            pass
        except NoRoom as error:
            self._later(row, str(error), NO_ROOM_S, counts=False)
        except PlatformError as error:
            log.warning("inference request for job %s is tried again: %s", row.job_id, error)
            self._after_failure(row, str(error))
        except ClaraFlowError as error:
            log.warning("inference request for job %s failed: %s", row.job_id, error)
            self._fail(row, str(error))
        except Exception as error:  # noqa: BLE001  a thread that breaks must not take the request with it
            log.error("inference request for job %s broke: %s", row.job_id, type(error).__name__)
            self._after_failure(row, "a fault of ours; the adapter's log says more")

    def attempt(self, row: InferenceRequest, stop: threading.Event) -> None:
        """Fetch what is missing, then make the job; or note what keeps it from that, and when it is tried again.

        Raises Stopped, NoRoom, and what `create_job` raises.
        """
        row = inference.begin(self.house.engine, row.transaction_id)
        if jobs.find_job(self.house.engine, row.job_id) is not None:
            self._succeed(row, "")  # the process ended right after it had made it
            return
        order = parse(row.body)
        faults: list[str] = []
        basket = self._basket(row, stop)
        self._fetch(order, basket, faults.append)
        message = "; ".join(faults[:SHOWN_FAULTS])
        if faults and row.attempts < self.house.settings.dicom_submit_retries:
            self._later(row, message, self.house.settings.dicom_submit_retry_delay_s)
            return
        files = basket.files()
        if not files:
            self._fail(row, message or "nothing was fetched")
            return
        self._make_job(row, order, files)
        notes = [f"made of what could be fetched; {message}"] if message else []
        notes += [f"outputResources[{number}] gets nothing: results go to DICOMweb alone" for number in order.unused]
        self._succeed(row, "; ".join(notes))

    def _fetch(self, order: Order, basket: Basket, on_fault: Callable[[str], None]) -> None:
        from clara_flow.services.dicom.inference_dimse import fetch_dimse
        from clara_flow.services.dicom.inference_move import Landing

        landing = Landing(self.house.engine, Places.of(self.house.settings).spool)
        for number, resource in enumerate(order.resources, 1):
            for inputs in order.inputs:
                basket.check()
                if resource.interface == "fhir":
                    if inputs.fhir:
                        fetch_fhir(number, resource, inputs, basket, on_fault)
                elif inputs.has_dicom and resource.interface == "dicomweb":
                    fetch_dicomweb(number, resource, inputs, basket, on_fault)
                elif inputs.has_dicom:
                    fetch_dimse(self.house.settings, number, resource, inputs, basket, landing, on_fault)

    def _make_job(self, row: InferenceRequest, order: Order, files: dict[str, Path]) -> None:
        metadata = {TRIGGER: BY_REQUEST, "Source": order.transaction_id, INSTANCES: str(len(files))}
        if order.outputs:
            metadata[OUTPUTS] = json.dumps(
                [{"interface": one.interface, "uri": one.connection.uri} for one in order.outputs]
            )
        create_job(
            self.house,
            self._pipelines.named(order.pipeline),
            source=files,
            runtime=self.house.settings.runtime,
            name=job_name(order.transaction_id, order.name, datetime.now(UTC)),
            priority=order.priority,
            job_id=row.job_id,
            payload_id=row.payload_id,
            metadata=metadata,
        )

    def _basket(self, row: InferenceRequest, stop: threading.Event) -> Basket:
        def note(item: str) -> None:
            inference.note_item(self.house.engine, row.transaction_id, item)

        def tell(message: str) -> None:
            inference.note_progress(self.house.engine, row.transaction_id, message)

        folder = self._folder / str(row.job_id)
        items = row.fetched.get(inference.ITEMS, ())
        return Basket(folder, items, note, tell, space=self._space, stop=stop)

    def _succeed(self, row: InferenceRequest, message: str) -> None:
        inference.complete(self.house.engine, row.transaction_id, InferenceStatus.SUCCESS, message=message)
        self._remove_files(row)

    def _fail(self, row: InferenceRequest, message: str) -> None:
        inference.complete(self.house.engine, row.transaction_id, InferenceStatus.FAIL, message=message)
        self._remove_files(row)

    def _after_failure(self, row: InferenceRequest, message: str) -> None:
        if row.attempts < self.house.settings.dicom_submit_retries:
            self._later(row, message, self.house.settings.dicom_submit_retry_delay_s)
        else:
            self._fail(row, message)

    def _later(self, row: InferenceRequest, message: str, delay_s: float, *, counts: bool = True) -> None:
        inference.retry_later(self.house.engine, row.transaction_id, delay_s=delay_s, message=message, counts=counts)

    def _remove_files(self, row: InferenceRequest) -> None:
        folder = self._folder / str(row.job_id)
        if folder.is_dir():
            remove_tree(folder)

    def _sweep(self) -> None:
        """Remove what requests left that are over."""
        for folder in self._folder.glob("*"):
            try:
                is_over = inference.find(self.house.engine, folder.name).state is InferenceState.COMPLETED
            except NotFound:
                is_over = True
            if is_over:
                remove_tree(folder)
