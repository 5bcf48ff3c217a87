"""Ends a process of ours when it is asked to: SIGTERM, SIGINT."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress

END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def on_end(end: Callable[[], None], numbers: Iterable[signal.Signals] = END_SIGNALS) -> None:
    """Call `end`, which may be called several times, whenever one of these signals comes. For a main thread.

    It runs in a thread of its own. A handler interrupts the main thread anywhere, also where it holds the lock of a
    `threading.Event`, or is in the handler for the signal before: to set the event there is to wait for oneself.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def tell(_number: int, _frame: object) -> None:
        with suppress(BlockingIOError):  # then enough was told
            os.write(writer, b"\0")

    def listen() -> None:
        while os.read(reader, 1):
            end()

    threading.Thread(target=listen, name="endings", daemon=True).start()
    for number in numbers:
        signal.signal(number, tell)
