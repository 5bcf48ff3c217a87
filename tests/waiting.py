"""Waiting for a condition with a limit: what tests use instead of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def eventually(predicate: Callable[[], object], *, within_s: float = 10.0, every_s: float = 0.02) -> None:
    """Return as soon as `predicate()` is true; fail the test when it is not within `within_s` seconds."""
    pause = threading.Event()
    deadline = time.monotonic() + within_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {within_s} s: {predicate}"
        pause.wait(every_s)
