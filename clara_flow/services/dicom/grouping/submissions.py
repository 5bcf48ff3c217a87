"""Whose turn it is to become jobs: groups one beside the other, the more urgent first, none in another's way."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self
from uuid import UUID

from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError
from clara_flow.records import dicom_groups as records
from clara_flow.records.state_machine import JobPriority
from clara_flow.services.dicom.grouping.processors import Configured
from clara_flow.services.dicom.grouping.submit import POSTPONED_S, Submitter

log = logging.getLogger(__name__)

AT_ONCE = 4
LEFT_FOR_OTHERS = 1  # of these no AE title gets all, so that one whose plug-in hangs keeps no other
LOOK_S = 5.0  # between looks while nobody says that something changed
BROKEN_S = 5.0  # pause for a group whose submission broke

URGENCY = {priority: number for number, priority in enumerate(JobPriority)}


class Submissions:
    """For one thread; a context manager: at its end, what is under way is finished."""

    def __init__(self, house: House, submitter: Submitter, configured_for: Callable[[str], Configured | None]) -> None:
        self.house, self.submitter = house, submitter
        self._configured_for = configured_for
        self._pool = ThreadPoolExecutor(AT_ONCE, "submit")
        self._under_way: dict[UUID, tuple[str, Future[None]]] = {}  # and the names of their AE titles
        self._not_before: dict[UUID, float] = {}
        self._look_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def look(self) -> None:
        """Something changed: `begin` looks at the tables."""
        self._look_at = 0.0

    def begin(self) -> bool:
        """Begin what is due, as far as there is room; the rest keeps its turn. Raises ServiceError.

        Whether one broke off since the last call: what it was at may be done or not.
        """
        now = time.monotonic()
        ended = [one for one, (_, future) in self._under_way.items() if future.done()]
        broken = [one for one in ended if not self._ended(one, self._under_way.pop(one)[1], now)]
        if now >= self._look_at and len(self._under_way) < AT_ONCE:
            self._begin_due(now)
        return bool(broken)

    def _begin_due(self, now: float) -> None:
        turns = records.turns(self.house.engine)
        due = [one for one in turns if not 0 < one.wait_s <= self._longest_wait_s(one.aetitle)]
        self._look_at = now + min([LOOK_S, *(one.wait_s for one in turns if one not in due)])
        busy = Counter(aetitle for aetitle, _ in self._under_way.values())
        for one in sorted(due, key=lambda one: (-self._urgency(one.aetitle), one.completed)):
            if len(self._under_way) >= AT_ONCE:
                break
            if one.group_id in self._under_way or self._not_before.get(one.group_id, 0.0) > now:
                continue
            if busy[one.aetitle] < max(1, AT_ONCE - LEFT_FOR_OTHERS):
                busy[one.aetitle] += 1
                future = self._pool.submit(self.submitter.submit, one.group_id, self._configured_for(one.aetitle))
                self._under_way[one.group_id] = one.aetitle, future

    def _longest_wait_s(self, aetitle: str) -> float:
        """No group waits for longer: where one seems to, the database's clock was set back."""
        configured = self._configured_for(aetitle)
        own_s = configured.settings.retry_delay_s if configured is not None else None
        return max(POSTPONED_S, self.house.settings.dicom_submit_retry_delay_s if own_s is None else own_s)

    def _ended(self, group_id: UUID, future: Future[None], now: float) -> bool:
        """Whether it ran to its end."""
        self._look_at = 0.0
        self._not_before.pop(group_id, None)
        error = future.exception()
        if error is None:
            return True
        # What it left is in the tables: the group is still complete, and is tried again.
        what = str(error) if isinstance(error, ClaraFlowError) else type(error).__name__
        log.error("the submission of group %s broke off: %s", group_id, what)
        self._not_before[group_id] = now + BROKEN_S
        return False

    def _urgency(self, aetitle: str) -> int:
        configured = self._configured_for(aetitle)
        return URGENCY[configured.settings.priority] if configured is not None else 0
