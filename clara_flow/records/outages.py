"""What a log is told of something that is away: one line when it goes, one now and then, one when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

REMIND_S = 600.0


class Outage:
    """Of what one loop needs: the database, a service. For one thread.

    who     what waits, as people know it: "the exporter". clock: seconds, monotonic.
    """

    def __init__(self, log: logging.Logger, who: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._who, self._clock = log, who, clock
        self._since: float | None = None
        self._remind_at = 0.0

    def met(self, error: Exception) -> None:
        """It is away, said `error` (its first line is told); to be called at every try."""
        now = self._clock()
        reason = str(error).partition("\n")[0] or type(error).__name__
        if self._since is None:
            self._since = now
            self._log.warning("%s waits: %s", self._who, reason)
        elif now >= self._remind_at:
            self._log.warning("%s waits since %.0f s: %s", self._who, now - self._since, reason)
        else:
            return
        self._remind_at = now + REMIND_S

    def over(self) -> None:
        """It is there; to be called whenever that is seen."""
        if self._since is not None:
            self._log.info("%s goes on after %.0f s", self._who, self._clock() - self._since)
            self._since = None
