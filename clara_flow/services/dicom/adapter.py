"""The DICOM adapter: keeps listeners running, and runs the loops that make jobs of what they receive and send results.

python -m clara_flow.services.dicom.adapter
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from clara_flow.deployments.own_log import log_to_stderr
from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError
from clara_flow.infra.images.catalog import installed
from clara_flow.infra.postgres import records_url
from clara_flow.records.database import connect
from clara_flow.services import prefect_server
from clara_flow.services.dicom.block_nodes import BlockNodes
from clara_flow.services.dicom.config_snapshot import SnapshotWriter
from clara_flow.services.dicom.export.exporter import Exporter
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.grouping.tags import wanted_tags
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.inbox import Inbox
from clara_flow.services.dicom.inference import InferenceWorker
from clara_flow.services.dicom.listener_config import ListenerConfigFile
from clara_flow.services.dicom.loops import Loop, Loops
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.retention import Retention
from clara_flow.services.dicom.spool import Spool
from clara_flow.services.dicom_service import ADAPTER, LISTENER_PROGRAM
from clara_flow.services.endings import on_end
from clara_flow.services.results.cleanup import CleanUp
from clara_flow.settings import Settings, load_settings

log = logging.getLogger(__name__)

LOOK_S = 0.5
PAUSE_S = 1.0  # before a listener that died is started again
LISTENER_END_S = 10.0
DRAIN_MARGIN_S = 30.0  # beyond the silence that ends an association


class Listeners:
    """The processes on the port; one that dies is started again."""

    def __init__(self, settings: Settings) -> None:
        count = settings.dicom_listeners or max(1, len(os.sched_getaffinity(0)) // 2)
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self._retry_at = [0.0] * count

    def look(self) -> int:
        """Start what does not run; how many run."""
        for number, process in enumerate(self._processes):
            if process is not None and process.poll() is not None:
                log.warning("listener %d ended with %s and is started again", number, process.returncode)
                self._processes[number] = None
                self._retry_at[number] = time.monotonic() + PAUSE_S
            if self._processes[number] is None and time.monotonic() >= self._retry_at[number]:
                self._processes[number] = subprocess.Popen(
                    [sys.executable, "-P", "-m", LISTENER_PROGRAM, str(number)], stdin=subprocess.DEVNULL
                )
        return sum(process is not None for process in self._processes)

    def end(self) -> None:
        """Politely, then by force."""
        running = [process for process in self._processes if process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + LISTENER_END_S
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def loops_of(house: House, places: Places) -> list[Loop]:
    """Each is made anew when it is begun again: what broke it may be in it."""
    settings = house.settings

    def inbox(stop: threading.Event) -> None:
        Inbox(settings, Spool(places.spool), ListenerConfigFile(places.listener_config)).run(stop)

    def snapshot(stop: threading.Event) -> None:
        quiet_s = settings.dicom_idle_timeout_s + DRAIN_MARGIN_S
        beats = Heartbeats(places.heartbeats)
        own_title = settings.dicom_scu_ae_title
        SnapshotWriter(
            house.engine, places.listener_config, quiet_s=quiet_s, own_title=own_title, heartbeats=beats
        ).run(stop)

    def blocks(stop: threading.Event) -> None:
        BlockNodes(house.engine, prefect_server.api_url(settings), Heartbeats(places.heartbeats)).run(stop)

    makers: list[tuple[str, Callable[[threading.Event], None]]] = [
        ("snapshot", snapshot),
        ("grouper", lambda stop: Grouper(house, places.spool).run(stop)),
        ("exporter", lambda stop: Exporter(house).run(stop)),
        ("cleanup", lambda stop: CleanUp(house).run(stop)),
        ("retention", lambda stop: Retention(house).run(stop)),
        ("blocks", blocks),
        ("inference", lambda stop: InferenceWorker(house).run(stop)),
    ]
    if settings.dicom_inbox is not None:
        makers.append(("inbox", inbox))
    return [Loop(name, run) for name, run in makers]


def adapt(settings: Settings, stop: threading.Event) -> None:
    """Work until `stop` is set. Raises ClaraFlowError for settings that cannot be used."""
    wanted_tags(settings)
    places = Places.of(settings)
    heartbeats = Heartbeats(places.heartbeats)
    engine = connect(records_url(settings))
    house = House(settings=settings, engine=engine, catalog=installed(settings.catalogs))
    loops, listeners = Loops(stop), Listeners(settings)
    try:
        for loop in loops_of(house, places):
            loops.start(loop)
        while not stop.is_set():
            heartbeats.beat(ADAPTER, listeners=listeners.look())
            stop.wait(LOOK_S)
    finally:
        stop.set()
        listeners.end()
        if late := loops.join():
            log.warning("these did not end in time: %s", ", ".join(late))
        engine.dispose()


def main() -> int:
    """The exit status."""
    log_to_stderr()
    stop = threading.Event()
    on_end(stop.set)
    try:
        adapt(load_settings(), stop)
    except ClaraFlowError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
