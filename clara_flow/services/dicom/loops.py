"""Loops of the adapter: each in a thread of its own, begun again when it breaks, so that none ends another."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from clara_flow.errors import ClaraFlowError
from clara_flow.records.outages import Outage
from clara_flow.services.dicom.privacy import place_of

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
SOUND_S = 60.0  # a loop that ran for so long broke for another reason than the last time
END_S = 20.0


@dataclass(frozen=True, slots=True)
class Loop:
    """Something that works until the event is set. Whatever it raises, it is made and run again."""

    name: str
    run: Callable[[threading.Event], None]


class Loops:
    """Runs loops until `stop` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop
        self._threads: list[threading.Thread] = []

    def start(self, loop: Loop) -> None:
        """Begin it, in a thread that does not keep the process alive."""
        thread = threading.Thread(target=self._keep_up, args=(loop,), name=loop.name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> list[str]:
        """Wait for all loops, after `stop` was set; the names of those that did not end in time."""
        deadline = time.monotonic() + END_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name for thread in self._threads if thread.is_alive()]

    def _keep_up(self, loop: Loop) -> None:
        pause_s, outage = FIRST_PAUSE_S, Outage(log, loop.name)
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                loop.run(self.stop)
            except ClaraFlowError as error:  # its sentence says what to do
                if time.monotonic() - began > SOUND_S:
                    outage.over()
                outage.met(error)
            except Exception as error:  # noqa: BLE001  a loop that ends would be a hospital's silence
                # No traceback: what its frames hold may be a patient's.
                log.error("%s broke and is begun again: %s in %s", loop.name, type(error).__name__, place_of(error))
            if time.monotonic() - began > SOUND_S:
                pause_s = FIRST_PAUSE_S
            self.stop.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
