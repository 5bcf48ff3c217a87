"""The clocks of open groups: when each is to be looked at. They are monotonic: setting the time does nothing to them.

The tables keep when a group is due by the database's clock; that is asked once, when a process begins, and trusted no
further than the group's timeout, nor below COME_BACK_S: senders that were cut off need a moment to come back, and a
clock that was set forward meanwhile must not submit half a study.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

COME_BACK_S = 5.0

Clock = Callable[[], float]


@dataclass(slots=True)
class _Watched:
    last: float
    look_at: float


class Watch:
    """For one thread. clock: seconds, monotonic."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._groups: dict[UUID, _Watched] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, group_id: UUID) -> bool:
        return group_id in self._groups

    def arrived(self, group_id: UUID, timeout_s: float) -> None:
        """An instance of the group came just now."""
        now = self._clock()
        self._groups[group_id] = _Watched(now, now + timeout_s)

    def resume(self, group_id: UUID, timeout_s: float, left_s: float) -> None:
        """A group of an earlier process that is due in `left_s` by a clock that may have been set meanwhile."""
        left_s = min(max(COME_BACK_S, left_s), timeout_s)
        now = self._clock()
        self._groups[group_id] = _Watched(now + left_s - timeout_s, now + left_s)

    def look_in(self, group_id: UUID, seconds: float | None) -> None:
        """Look again in so many seconds; None: only when something happens."""
        if group_id in self._groups:
            self._groups[group_id].look_at = float("inf") if seconds is None else self._clock() + seconds

    def drop(self, group_id: UUID) -> None:
        """It is not open any more."""
        self._groups.pop(group_id, None)

    def idle_s(self, group_id: UUID) -> float:
        """For how long nothing came for it."""
        watched = self._groups.get(group_id)
        return 0.0 if watched is None else self._clock() - watched.last

    def due(self) -> set[UUID]:
        """Those to be looked at now."""
        now = self._clock()
        return {group_id for group_id, watched in self._groups.items() if watched.look_at <= now}
