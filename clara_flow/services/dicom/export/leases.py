"""Keeps the leases of the deliveries that are worked at, and stops the work of those that are lost."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import sqlalchemy as sa

from clara_flow.errors import ClaraFlowError, NotFound, StaleOwner
from clara_flow.records import deliveries
from clara_flow.records.owner import Owner

log = logging.getLogger(__name__)


class BrokenOff(ClaraFlowError):
    """The work at a delivery must end now. is_ours: the lease is not lost, so that the delivery can be given back."""

    def __init__(self, message: str, *, is_ours: bool) -> None:
        super().__init__(message, is_ours=is_ours)


class Hold:
    """One delivery that is worked at by one thread. Any other may break it off."""

    def __init__(self, delivery_id: uuid.UUID, lease: uuid.UUID, until: float) -> None:
        self.delivery_id, self.lease = delivery_id, lease
        self.until = until  # monotonic: the lease is certain until then
        self._lock = threading.Lock()
        self._reason: BrokenOff | None = None
        self._cut: Callable[[], None] | None = None

    def check(self) -> None:
        """Raises BrokenOff when it was."""
        if self._reason is not None:
            raise self._reason

    def break_off(self, message: str, *, is_ours: bool) -> None:
        """End the work: what waits for the peer at this moment is cut off. The first reason counts."""
        with self._lock:
            self._reason = self._reason or BrokenOff(message, is_ours=is_ours)
            cut = self._cut
        if cut is not None:
            cut()

    @contextlib.contextmanager
    def cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        """While inside, `break_off` calls `cut`: it must end a wait of this thread, and may be called by any."""
        with self._lock:
            self.check()
            self._cut = cut
        try:
            yield
        finally:
            with self._lock:
                self._cut = None


class LeaseKeeper:
    """Renews leases of `lease_s` seconds from a thread of its own, each three times in that time.

    A lease that another has, or that could not be renewed in its time because the database is away, is lost: its work
    is broken off. What is certain is only what the database said.

    owner   this process: when it is gone, the next one need not wait for its leases to end.
    """

    def __init__(self, engine: sa.Engine, lease_s: float) -> None:
        self.engine, self.lease_s = engine, lease_s
        self.owner = Owner.of_this_process()
        self._holds: dict[uuid.UUID, Hold] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="delivery leases", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Renew no longer."""
        self._end.set()
        self._thread.join()

    @contextlib.contextmanager
    def holding(self, delivery_id: uuid.UUID, lease: uuid.UUID, taken: float) -> Iterator[Hold]:
        """Keep this lease while inside. taken: when it was asked for (monotonic)."""
        hold = Hold(delivery_id, lease, taken + self.lease_s)
        with self._lock:
            self._holds[lease] = hold
        try:
            yield hold
        finally:
            with self._lock:
                del self._holds[lease]

    def break_all_off(self, message: str) -> None:
        """End all work; its deliveries can be given back."""
        for hold in self._current():
            hold.break_off(message, is_ours=True)

    def _current(self) -> list[Hold]:
        with self._lock:
            return list(self._holds.values())

    def _keep(self) -> None:
        while not self._end.wait(self.lease_s / 3):
            for hold in self._current():
                self._renew(hold)

    def _renew(self, hold: Hold) -> None:
        asked = time.monotonic()
        try:
            deliveries.renew(self.engine, hold.delivery_id, hold.lease, self.lease_s)
            hold.until = asked + self.lease_s
        except (StaleOwner, NotFound):
            if hold in self._current():  # else it has just ended, as it should
                log.warning("delivery %s is not ours any more: its work ends", hold.delivery_id)
                hold.break_off("its lease is lost", is_ours=False)
        except ClaraFlowError as error:
            if time.monotonic() + self.lease_s / 3 >= hold.until:
                log.warning("delivery %s could not be kept: %s", hold.delivery_id, error)
                hold.break_off("its lease could not be renewed", is_ours=False)
