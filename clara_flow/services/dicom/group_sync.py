"""Group commit: whoever comes while a flush is under way shares the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Ticket(Generic[Item]):
    """One item on its way, and what became of it."""

    __slots__ = ("done", "error", "item")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.done = False
        self.error: BaseException | None = None


class GroupSync(Generic[Item]):
    """Hands the items of all threads that wait to `flush`, in the order they came, in one thread at a time.

    The first thread that finds no flush under way does it for all that wait: who is alone waits for no other thread,
    and nobody waits for more than the flush under way and the next. `flush` returns for each item what kept it, or
    None; what it raises befell all of them.
    """

    def __init__(self, flush: Callable[[list[Item]], list[Exception | None]]) -> None:
        self._flush = flush
        self._changed = threading.Condition()
        self._waiting: list[_Ticket[Item]] = []
        self._flushing = False

    def put(self, item: Item) -> None:
        """Return when the item is flushed. Raises what its flush says of it."""
        ticket = _Ticket(item)
        group: list[_Ticket[Item]] = []
        with self._changed:
            self._waiting.append(ticket)
            while self._flushing and not ticket.done:
                self._changed.wait()
            if not ticket.done:
                group, self._waiting = self._waiting, []
                self._flushing = True
        if group:
            self._lead(group)
        if ticket.error is not None:
            raise ticket.error

    def _lead(self, group: list[_Ticket[Item]]) -> None:
        errors: list[BaseException | None]
        try:
            errors = [*self._flush([ticket.item for ticket in group])]
        except BaseException as error:  # noqa: BLE001 - raised in each thread that waits
            errors = [error] * len(group)
        with self._changed:
            self._flushing = False
            for ticket, outcome in zip(group, errors, strict=True):
                ticket.done, ticket.error = True, outcome
            self._changed.notify_all()
