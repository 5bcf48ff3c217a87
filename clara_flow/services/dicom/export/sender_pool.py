"""The senders of one destination: what was sent over last is used again before another association is asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from clara_flow.records.dicom_models import Destination
from clara_flow.services.dicom.export.sender import Sender

MakeSender = Callable[[Destination], Sender]


class SenderPool:
    """For the threads of one destination's queue."""

    def __init__(self, make: MakeSender) -> None:
        self._make = make
        self._resting: list[tuple[Destination, Sender]] = []
        self._new: set[Sender] = set()  # in use for the first time: perhaps the peer lets them wait for another's end
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def sender(self, destination: Destination) -> Iterator[Sender]:
        """A sender for the thread that is inside; afterwards it rests.

        It does not rest, but lets go of its association, while another one is used for the first time: there are peers
        that have one association at once, and let the next one wait for its end.
        """
        sender = self._take(destination)
        try:
            yield sender
        finally:
            with self._lock:
                self._new.discard(sender)
                rests = not self._new
                if rests:
                    self._resting.append((destination, sender))
            if not rests:
                sender.close()

    def look(self) -> float | None:
        """Let go of what rested too long; seconds until there is more of it, None without any."""
        with self._lock:
            resting, self._resting = self._resting, []
        kept, soonest = [], None
        for destination, sender in resting:
            if (left := sender.rest()) is None:
                sender.close()
            else:
                kept.append((destination, sender))
                soonest = left if soonest is None else min(left, soonest)
        with self._lock:
            self._resting = kept + self._resting
        return soonest

    def close(self) -> None:
        """Let go of all that rests."""
        with self._lock:
            resting, self._resting = self._resting, []
        for _, sender in resting:
            sender.close()

    def _take(self, destination: Destination) -> Sender:
        """Only one that was made for this very row: it says whom to call."""
        with self._lock:
            while self._resting:
                made_for, sender = self._resting.pop()
                if made_for is destination:
                    return sender
                sender.close()
            sender = self._make(destination)
            self._new.add(sender)
            return sender
