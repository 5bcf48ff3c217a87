"""The export agents as one loop of the adapter: a queue for each destination, told what there is and what changed."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from functools import cached_property

from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError, Conflict, NotFound, StaleOwner
from clara_flow.records import commitment_reports, deliveries, dicom_config
from clara_flow.records.commitment_reports import Owed
from clara_flow.records.deliveries import Queue
from clara_flow.records.dicom_models import Destination
from clara_flow.records.doorbell import Doorbell
from clara_flow.records.durable import naming_storage_problems
from clara_flow.records.inference import is_output
from clara_flow.records.outages import Outage
from clara_flow.services.dicom.deidentify import Deidentifier, key_file
from clara_flow.services.dicom.export.delivering import Desk
from clara_flow.services.dicom.export.destination_queue import DeliverySlots, DestinationQueue
from clara_flow.services.dicom.export.leases import LeaseKeeper
from clara_flow.services.dicom.export.outputs import Outputs
from clara_flow.services.dicom.export.owed_reports import OwedReports
from clara_flow.services.dicom.export.sender import Deidentify, Sender
from clara_flow.services.dicom.export.senders import sender_for
from clara_flow.services.dicom.heartbeats import DESTINATION, Heartbeats, destination_beat
from clara_flow.services.dicom.places import Places

log = logging.getLogger(__name__)

LEASE_S = 30.0  # after the crash of a machine, another may begin anew
WAITING_LOOK_S = 0.5  # while something waits for its time
SHORTEST_LOOK_S = 0.02  # between two looks, however often the bell rings
FINISH_S, BREAK_OFF_S = 5.0, 5.0  # at the end: for what is under way, and for giving back what was broken off
TAKEN_AT_ONCE = 100
HEARTBEAT = "exporter"


class Exporter:
    """Delivers the tasks of our agents until it is told to stop.

    deidentify  (data set, profile) -> data set, for destinations that want it; None: with the installation's key.
    """

    def __init__(self, house: House, deidentify: Deidentify | None = None, *, lease_s: float = LEASE_S) -> None:
        settings = house.settings
        self.house, self._given = house, deidentify
        self.agents = tuple(dict.fromkeys([settings.dicom_scu_ae_title, settings.dicom_stow_agent]))
        self._desk = Desk(settings, house.engine, house.store)
        self._slots = DeliverySlots(settings.dicom_scu_maximum_associations)
        self._keeper = LeaseKeeper(house.engine, lease_s)
        self._heartbeats = Heartbeats(Places.of(settings).heartbeats)
        self._reports = OwedReports(house.engine, settings.dicom_commitment_report_retention_s)
        self._outputs = Outputs(settings, house.engine)
        self._queues: dict[str, DestinationQueue] = {}
        self._leaving: list[DestinationQueue] = []
        self._known: set[str] | None = None  # keys of the destinations at the last look
        self._expired_at = float("-inf")
        self._outage = Outage(log, "the exporter")

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; then finish what is under way, or give it back. Raises SettingsError."""
        bell = Doorbell(self.house.engine, [deliveries.CHANNEL, dicom_config.CHANNEL, commitment_reports.CHANNEL])
        is_over = threading.Event()

        def wake_at_end() -> None:
            stop.wait()
            if not is_over.is_set():
                bell.interrupt()

        waker = threading.Thread(target=wake_at_end, name="exporter end", daemon=True)
        self._keeper.start()
        waker.start()
        try:
            while not stop.is_set():
                bell.wait(self._look())
                stop.wait(SHORTEST_LOOK_S)
        finally:
            is_over.set()
            self._end()
            bell.close()

    def _look(self) -> float:
        """One round; seconds until the next one, unless the bell rings."""
        poll_s = self.house.settings.poll_s
        try:
            if time.monotonic() - self._expired_at >= poll_s:
                deliveries.expire(self.house.engine)
                self._expired_at = time.monotonic()
            destinations = dicom_config.list_destinations(self.house.engine)
            waiting = [queue for queue in deliveries.queues(self.house.engine) if self._is_ours(queue)]
            self._match([*destinations, *self._outputs.look(waiting)])
            for queue in waiting:
                self._offer(queue)
            owed = self._reports.look(destinations)
            for name in {report.destination for report in owed if report.is_due}:
                if (known := self._queues.get(name.casefold())) is not None:
                    known.owe()
        except ClaraFlowError as error:
            self._outage.met(error)
            self._heartbeats.beat(HEARTBEAT, problem=type(error).__name__)
            return WAITING_LOOK_S
        self._outage.over()
        self._tell(waiting, owed)
        is_soon = any(queue.pending > queue.due for queue in waiting) or any(report.destination for report in owed)
        return min(poll_s, WAITING_LOOK_S) if is_soon else poll_s

    def _is_ours(self, queue: Queue) -> bool:
        return queue.agent.casefold() in {agent.casefold() for agent in self.agents}

    def _match(self, destinations: Iterable[Destination]) -> None:
        """A queue for each destination, as it is now."""
        current = {destination.name.casefold(): destination for destination in destinations}
        if self._known != current.keys():
            self._forget({destination_beat(destination.name) for destination in current.values()})
            self._known = set(current)
        for key in self._queues.keys() - current.keys():
            queue = self._queues.pop(key)
            queue.end()
            self._leaving.append(queue)
        self._leaving = [queue for queue in self._leaving if not queue.is_idle]
        self._slots.know([destination.name for destination in current.values()])
        for key, destination in current.items():
            if key not in self._queues:
                self._queues[key] = DestinationQueue(
                    destination,
                    self._desk,
                    agents=self.agents,
                    make_sender=self._sender,
                    slots=self._slots,
                    keeper=self._keeper,
                )
            self._queues[key].update(destination)

    def _forget(self, current: Collection[str]) -> None:
        """Remove signs of life of destinations that are gone, an earlier exporter's too: they would look dead."""
        for path in self._heartbeats.folder.glob(f"{DESTINATION}*.json"):
            if path.stem not in current:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _sender(self, destination: Destination) -> Sender:
        if is_output(destination.name):
            return self._outputs.sender(destination)
        return sender_for(destination, self.house.settings, self._deidentify if destination.deidentify else None)

    @cached_property
    def _deidentify(self) -> Deidentify:
        """Made when it is needed: its key may have to be written, and the disk may be full."""
        if self._given is not None:
            return self._given
        with naming_storage_problems(self.house.settings.data_dir):
            return Deidentifier.of(key_file(self.house.settings)).deidentify

    def _offer(self, queue: Queue) -> None:
        if not queue.due:
            return
        if (known := self._queues.get(queue.destination.casefold())) is not None:
            known.ring()
        else:
            self._refuse(queue)

    def _refuse(self, queue: Queue) -> None:
        """What is for nobody fails at once, and says what can be done."""
        owner = self._keeper.owner
        for delivery in deliveries.take(
            self.house.engine, queue.agent, TAKEN_AT_ONCE, LEASE_S, destination=queue.destination, owner=owner
        ):
            with contextlib.suppress(StaleOwner, NotFound, Conflict):
                deliveries.fail(
                    self.house.engine, delivery.id, False, _nobody(delivery.destination), lease=delivery.lease
                )

    def _tell(self, waiting: list[Queue], owed: list[Owed]) -> None:
        """Signs of life: of the whole, and of each destination."""
        now = datetime.now(UTC)
        self._heartbeats.beat(
            HEARTBEAT,
            pending=sum(queue.pending for queue in waiting),
            due=sum(queue.due for queue in waiting),
            in_progress=sum(queue.in_progress for queue in waiting),
            destinations=len(self._queues),
            reports_owed=len(owed),
            reports_without_destination=sum(not report.destination for report in owed),
        )
        for key, queue in self._queues.items():
            rows = [row for row in waiting if row.destination.casefold() == key]
            oldest = min((row.oldest for row in rows if row.oldest is not None), default=now)
            self._heartbeats.beat(
                destination_beat(queue.name),
                breaker=str(queue.breaker.state),
                pending=sum(row.pending for row in rows),
                in_progress=sum(row.in_progress for row in rows),
                oldest_s=round(max(0.0, (now - oldest).total_seconds()), 3),
                reports_owed=sum(report.destination == queue.name for report in owed),
                last_error=queue.last_error,
            )

    def _end(self) -> None:
        """What is under way has some time; then it is broken off and given back."""
        queues = [*self._queues.values(), *self._leaving]
        for queue in queues:
            queue.end()
        deadline = time.monotonic() + FINISH_S
        for queue in queues:
            queue.join(deadline)
        self._keeper.break_all_off("the exporter stops")
        for queue in queues:
            queue.break_off()
        deadline = time.monotonic() + BREAK_OFF_S
        for queue in queues:
            queue.join(deadline)
        self._keeper.close()


def _nobody(destination: str) -> str:
    if is_output(destination):
        return "the inference request that names its server is not known any more: it is delivered to nobody"
    if not destination:
        return "its parameters name no destination: they are the name of one, as a JSON text"
    return f"there is no destination {json.dumps(destination)}: add it (clara-flow dicom destination add), then retry"
