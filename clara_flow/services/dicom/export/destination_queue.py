"""The queue of one destination: threads of its own, a breaker of its own; what happens here delays no other one."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from clara_flow.errors import ClaraFlowError, Conflict, NotFound, StaleOwner
from clara_flow.records import deliveries, dicom_config
from clara_flow.records.dicom_models import Delivery, Destination
from clara_flow.records.inference import is_output
from clara_flow.records.outages import Outage
from clara_flow.services.dicom.export import breaker as breakers
from clara_flow.services.dicom.export.breaker import Breaker, Permit, Tuning
from clara_flow.services.dicom.export.delivering import Desk, deliver
from clara_flow.services.dicom.export.leases import BrokenOff, LeaseKeeper
from clara_flow.services.dicom.export.owed_reports import tell_next
from clara_flow.services.dicom.export.retry_policy import Course, Settlement, pause_s
from clara_flow.services.dicom.export.sender import DestinationFailed, Sender
from clara_flow.services.dicom.export.sender_pool import MakeSender, SenderPool
from clara_flow.services.dicom.privacy import place_of

log = logging.getLogger(__name__)

AFTER_TROUBLE_S = 1.0  # with the database, or of our own
COMMITMENT_S = 60.0  # at least so long is waited for a report before it is asked for again
FIRST_OPEN_S = 1.0


class DeliverySlots:
    """Deliveries at once over all destinations, of which each has one that no other can take.

    limit   in all; beyond it, a destination may have its one.

    More than one a destination gets only while every one that has none could still get its own within the limit: so
    those that hang never make others wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()
        self._names: set[str] = set()
        self._changed = threading.Condition()

    def know(self, names: Sequence[str]) -> None:
        """The destinations that there are."""
        with self._changed:
            self._names = set(names)
            self._changed.notify_all()

    def acquire(self, name: str, is_over: Callable[[], bool]) -> bool:
        """Wait for a slot; False when `is_over` came first."""
        with self._changed:
            while not is_over():
                if self._may(name):
                    self._held[name] += 1
                    return True
                self._changed.wait(0.5)
        return False

    def release(self, name: str) -> None:
        """Give it back."""
        with self._changed:
            self._held[name] -= 1
            self._changed.notify_all()

    def _may(self, name: str) -> bool:
        if not self._held[name]:
            return True
        without = sum(1 for other in self._names if other != name and not self._held[other])
        return self._held.total() + without < self._limit


class DestinationQueue:
    """Delivers what waits for one destination, `destination.concurrency` at once, and tells it what it is owed.

    agents      whose tasks are taken: ours.
    """

    def __init__(
        self,
        destination: Destination,
        desk: Desk,
        *,
        agents: Sequence[str],
        make_sender: MakeSender,
        slots: DeliverySlots,
        keeper: LeaseKeeper,
    ) -> None:
        self.name = destination.name
        self.destination = destination
        self.last_error = ""
        self._desk, self._agents, self._senders = desk, tuple(agents), SenderPool(make_sender)
        self._slots, self._keeper = slots, keeper
        # One delivery alone uses up its retries before it opens, so that it ends with a reason.
        self._tuning = Tuning(
            threshold=desk.settings.dicom_export_retries + 2,
            first_s=max(desk.settings.dicom_export_retry_delay_s, FIRST_OPEN_S),
        )
        self._breaker = Breaker()
        self._is_due = False
        self._owes_reports = False
        self._cuts: set[Callable[[], None]] = set()
        self._is_over = False
        self._changed = threading.Condition()
        self._threads: dict[int, threading.Thread] = {}

    @property
    def breaker(self) -> Breaker:
        """As it stands."""
        return self._breaker

    @property
    def is_idle(self) -> bool:
        """Whether no thread of it is left."""
        return not any(thread.is_alive() for thread in self._threads.values())

    def update(self, destination: Destination) -> None:
        """What the destination is now. One that was changed is tried at once: it may have been mended."""
        with self._changed:
            if destination.model_dump() != self.destination.model_dump():
                self.destination, self._breaker = destination, Breaker()
            for number in range(destination.concurrency):
                thread = self._threads.get(number)
                if not self._is_over and (thread is None or not thread.is_alive()):
                    self._threads[number] = threading.Thread(
                        target=self._work, args=(number,), name=f"export {self.name} {number}", daemon=True
                    )
                    self._threads[number].start()
            self._changed.notify_all()

    def ring(self) -> None:
        """There is something for it."""
        with self._changed:
            self._is_due = True
            self._changed.notify_all()

    def owe(self) -> None:
        """It is owed a report of storage commitment."""
        with self._changed:
            self._owes_reports = True
        self.ring()

    def end(self) -> None:
        """Take nothing more; what is under way goes on."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def break_off(self) -> None:
        """Cut off reports that are being told; deliveries are their leases' keeper's affair."""
        with self._changed:
            for cut in self._cuts:
                cut()

    def join(self, until: float) -> None:
        """Wait for its threads until that moment (monotonic)."""
        for thread in list(self._threads.values()):
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self, number: int) -> None:
        outage = Outage(log, f"thread {number} of destination {self.name}")
        while (turn := self._turn(number)) is not None:
            permit, destination = turn
            try:
                if permit is not Permit.TRIAL or self._is_answering(destination):
                    self._deliver_next(destination, permit)
                outage.over()
            except ClaraFlowError as error:
                outage.met(error)
                self._rest_after_trouble(permit)
            except Exception as error:  # noqa: BLE001 - a thread that ends with the trial would leave the breaker waiting
                log.error("deliveries to %s wait: %s in %s", self.name, type(error).__name__, place_of(error))
                self._rest_after_trouble(permit)
        self._senders.close()

    def _turn(self, number: int) -> tuple[Permit, Destination] | None:
        """Wait until something may be tried; None when this thread is over."""
        while True:
            rest = self._senders.look()
            with self._changed:
                if self._is_over or number >= self.destination.concurrency:
                    return None
                if self._is_due and not self.destination.paused:
                    now = time.monotonic()
                    self._breaker, permit = breakers.ask(self._breaker, now)
                    if permit is not Permit.WAIT:
                        return permit, self.destination
                    if self._breaker.state is breakers.BreakerState.OPEN:
                        rest = min(self._breaker.until - now, rest if rest is not None else float("inf"))
                self._changed.wait(rest)

    def _is_answering(self, destination: Destination) -> bool:
        try:
            with self._senders.sender(destination) as sender:
                sender.probe()
        except DestinationFailed as failure:
            self._failed(failure)
            return False
        return True

    def _deliver_next(self, destination: Destination, permit: Permit) -> None:
        """Take one and deliver it; nothing happens when there is none."""
        if not self._slots.acquire(self.name, lambda: self._is_over):
            self._untried(permit)
            return
        try:
            with self._changed:
                self._is_due = False  # rung again by whoever has something after this look
                owes_reports, self._owes_reports = self._owes_reports, False
            if owes_reports and tell_next(self._desk, destination, self._cutting):
                self._untried(permit)
                self.owe()  # there may be more
                return
            taken = time.monotonic()
            delivery = self._take()
            if delivery is None or delivery.lease is None:
                self._untried(permit)
                return
            self.ring()  # there may be more
            with self._senders.sender(destination) as sender:
                self._deliver(delivery, destination, sender, taken, permit)
        finally:
            self._slots.release(self.name)

    @contextmanager
    def _cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        with self._changed:
            self._cuts.add(cut)
        try:
            yield
        finally:
            with self._changed:
                self._cuts.discard(cut)

    def _take(self) -> Delivery | None:
        for agent in self._agents:
            rows = deliveries.take(
                self._desk.engine, agent, 1, self._keeper.lease_s, destination=self.name, owner=self._keeper.owner
            )
            if rows:
                return rows[0]
        return None

    def _deliver(
        self, delivery: Delivery, destination: Destination, sender: Sender, taken: float, permit: Permit
    ) -> None:
        assert delivery.lease is not None  # noqa: S101 - for the type checker
        try:
            with self._keeper.holding(delivery.id, delivery.lease, taken) as hold:
                settlement, failure = deliver(self._desk, delivery, destination, sender, hold)
        except BrokenOff as reason:
            log.info("delivery %s was broken off: %s", delivery.id, reason)
            self._untried(permit)
            if reason.facts["is_ours"]:
                with suppress(StaleOwner, NotFound, Conflict):
                    self._desk.persistently(deliveries.give_back, delivery.id, delivery.lease)
            return
        except ClaraFlowError:
            raise  # the database stays away: the lease ends by itself
        except Exception as error:  # noqa: BLE001 - a bug of ours is told and counted, else it would be met for ever
            self._untried(permit)
            is_last = delivery.retries >= self._desk.settings.dicom_export_retries
            # No traceback: what its frames hold may be a patient's.
            message = f"the exporter broke ({type(error).__name__}: {place_of(error, steps=1)})"
            log.error("delivery %s: %s", delivery.id, message)
            self._report(delivery, destination, Settlement(Course.FAIL if is_last else Course.LATER, message))
            return
        if failure is None:
            self._succeeded()
        elif is_output(self.name) and failure.facts["kind"] == "credentials":
            self._untried(permit)  # each request's are its own, and tell nothing of the server
        else:
            self._failed(failure)
        self._report(delivery, destination, settlement)

    def _report(self, delivery: Delivery, destination: Destination, settlement: Settlement) -> None:
        """destination   as it was when this was tried: where it was changed meanwhile, it is tried again at once."""
        facts = {"lease": delivery.lease}
        log.info("delivery %s to %s: %s", delivery.id, self.name, settlement.course)
        with suppress(StaleOwner, NotFound, Conflict):  # another has it, or somebody gave it up
            if settlement.course is Course.SUCCEED:
                self._desk.persistently(deliveries.succeed, delivery.id, **facts)
                return
            later = settlement.course is Course.LATER
            first_s = self._desk.settings.dicom_export_retry_delay_s
            if settlement.waits_for_report:
                first_s = max(first_s, COMMITMENT_S)
            wait_s = pause_s(delivery.retries, first_s, random.random())  # noqa: S311 - jitter
            self._desk.persistently(deliveries.fail, delivery.id, later, settlement.message, delay_s=wait_s, **facts)
            # A change ends the pauses that it finds. One that it did not find, because this was being tried, ends here.
            if later and self._desk.persistently(dicom_config.get_destination, self.name).updated > destination.updated:
                self._desk.persistently(deliveries.retry, delivery.id)

    def _failed(self, failure: DestinationFailed) -> None:
        with self._changed:
            before = self._breaker.state
            self._breaker = breakers.failed(
                self._breaker,
                time.monotonic(),
                self._tuning,
                random.random(),  # noqa: S311 - jitter
            )
            self.last_error = str(failure.facts["kind"])
            self._changed.notify_all()
        if self._breaker.state is not before:
            log.warning("destination %s: %s; it is %s", self.name, failure, self._breaker.state)

    def _succeeded(self) -> None:
        with self._changed:
            self._breaker, self.last_error = breakers.succeeded(self._breaker), ""
            self._changed.notify_all()

    def _untried(self, permit: Permit) -> None:
        """Who had the trial did not come to it."""
        if permit is Permit.TRIAL:
            with self._changed:
                self._breaker = breakers.untried(self._breaker, time.monotonic())
                self._changed.notify_all()

    def _rest_after_trouble(self, permit: Permit) -> None:
        self._untried(permit)
        with self._changed:
            if not self._is_over:
                self._changed.wait(AFTER_TROUBLE_S)
            self._is_due = True
