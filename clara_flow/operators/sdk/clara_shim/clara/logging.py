"""`clara.logging`: the performance log of published operators, as lines of the operator's log."""

from __future__ import annotations

import time

from clara_flow.operators.sdk import log


class PerfLogger:
    """Times named stages of an operator's work; a stage may be started again after its end."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    def stage_started(self, name: str, text: str = "") -> None:
        """Log that the stage `name` begins."""
        self._started[name] = time.monotonic()
        log.info(text or "started", perf="started", name=name)

    def stage_ended(self, name: str, text: str = "") -> None:
        """Log that the stage `name` has ended and how long it took, in seconds; a stage never begun has no duration."""
        started = self._started.pop(name, None)
        facts = {} if started is None else {"seconds": round(time.monotonic() - started, 3)}
        log.info(text or "ended", perf="ended", name=name, **facts)


perf_logger = PerfLogger()
