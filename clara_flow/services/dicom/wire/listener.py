"""A listener process: sockets, the lobby, and a thread for each association.

`run` is the program. Several processes listen on the same ports (SO_REUSEPORT) and share the limits on associations.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pydicom.config

from clara_flow.errors import ServiceError, StorageError
from clara_flow.services.dicom.heartbeats import Heartbeats
from clara_flow.services.dicom.listener_config import ListenerConfig, ListenerConfigFile, SourceRule
from clara_flow.services.dicom.procedure_steps import ProcedureSteps
from clara_flow.services.dicom.space import SpaceCheck
from clara_flow.services.dicom.spool import Spool
from clara_flow.services.dicom.wire.admission import BUSY, Policy
from clara_flow.services.dicom.wire.association import Association, Station
from clara_flow.services.dicom.wire.counters import Counters
from clara_flow.services.dicom.wire.lobby import Arrival, Entrance, Lobby
from clara_flow.services.dicom.wire.options import ListenerOptions
from clara_flow.services.dicom.wire.slots import Slot, Slots
from clara_flow.services.dicom.wire.sources import HostNames
from clara_flow.services.dicom.wire.tls import server_context
from clara_flow.services.endings import on_end

__all__ = ["Listener", "ListenerOptions", "run", "serve"]

log = logging.getLogger(__name__)

BACKLOG = 512
ROUND_S = 1.0
STOP_GRACE_S = 10.0  # for the instances that are arriving
BREAK_GRACE_S = 2.0


def run(options: ListenerOptions) -> None:
    """Listen until SIGTERM or SIGINT. For a process's main thread. Raises ServiceError, SettingsError, StorageError."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings show values
    listener = Listener(options)
    stop = threading.Event()

    def end() -> None:
        stop.set()
        listener.wake()

    on_end(end)
    serve(listener, stop)


def serve(listener: Listener, stop: threading.Event) -> None:
    """Run a listener until `stop` is set and it was woken.

    Raises StorageError when its journal broke: a new process begins a new one.
    """
    try:
        while not (stop.is_set() or listener.is_broken):
            listener.run_once(ROUND_S)
    finally:
        listener.close()
    if listener.is_broken:
        raise StorageError("the journal of received instances broke; the listener ends, to be started again")


class Listener:
    """One process's share of the listening. Made, run and closed by one thread.

    port, tls_port      where it listens; tls_port is None without TLS.
    is_broken           whether its journal takes nothing any more.
    """

    def __init__(self, options: ListenerOptions) -> None:
        self.options = options
        self.counters = Counters()
        self.is_broken = False
        self._config_file = ListenerConfigFile(options.config)
        self._config = ListenerConfig()
        self._config_mutex = threading.Lock()
        self._names = HostNames()
        self._beats = Heartbeats(options.heartbeats)
        self._threads: dict[threading.Thread, Association] = {}
        self._source_slots: dict[str, Slots] = {}
        self._mutex = threading.Lock()
        with ExitStack() as undo:
            entrances = self._entrances(undo)
            self._slots = Slots(options.spool / "slots" / "all")
            undo.callback(self._slots.close)
            self._space = SpaceCheck(options.spool, options.watermark_percent, options.reserve_mib)
            self._writer = Spool(options.spool).writer(options.fsync)
            undo.pop_all()
        self.port = int(entrances[0].socket.getsockname()[1])
        self.tls_port = int(entrances[1].socket.getsockname()[1]) if len(entrances) > 1 else None
        self._lobby = Lobby(
            entrances,
            on_arrival=self._on_arrival,
            on_refused=self.counters.reject,
            request_timeout_s=options.request_timeout_s,
        )
        self._station = Station(
            config=self._current_config,
            policy=Policy(
                reject_unknown_sources=options.reject_unknown_sources,
                verification=options.verification,
                verification_syntaxes=options.verification_syntaxes,
                names=self._names,
                take_source_slot=self._take_source_slot,
                is_space_short=self._is_space_short,
            ),
            writer=self._writer,
            steps=ProcedureSteps(options.spool, fsync=options.fsync),
            counters=self.counters,
            check=options.check,
            farewell=self._lobby.dismiss,
            on_broken=self._give_up,
            maximum_pdu_bytes=options.maximum_pdu_bytes,
            idle_timeout_s=options.idle_timeout_s,
        )
        log.info("listener %d: port %d%s", options.number, self.port, f", TLS {self.tls_port}" if self.tls_port else "")

    def run_once(self, timeout_s: float) -> None:
        """Serve connections for that long at most, and tell how it is."""
        self._lobby.run_once(timeout_s)
        self._beat()

    def wake(self) -> None:
        """Let `run_once` return. For any thread, and for signal handlers."""
        self._lobby.wake()

    def close(self) -> None:
        """Take nobody in any more; end the associations, each after the instance that is arriving; close everything."""
        self._lobby.close_entrances()
        for association in self._associations():
            association.stop()
        self._await_associations(STOP_GRACE_S)
        for association in self._associations():
            association.break_off()
        self._await_associations(BREAK_GRACE_S)
        self._lobby.close()
        self._writer.close()
        self._slots.close()
        for slots in self._source_slots.values():
            slots.close()

    def _entrances(self, undo: ExitStack) -> list[Entrance]:
        options = self.options
        entrances = [Entrance(undo.enter_context(_listen(options.host, options.port)))]
        if options.tls_port is not None:
            tls = server_context(options.tls_certificate, options.tls_key, options.tls_authorities)
            entrances.append(Entrance(undo.enter_context(_listen(options.host, options.tls_port)), tls))
        return entrances

    def _on_arrival(self, arrival: Arrival) -> None:
        """The first of Clara's checks: whether there is a slot left. The others are the association's."""
        slot = self._slots.take(self.options.maximum_associations)
        if slot is None:
            self.counters.reject(BUSY.name)
            with suppress(OSError):
                arrival.socket.settimeout(0)
                arrival.socket.send(BUSY.encode())
            self._lobby.dismiss(arrival.socket)
            return
        holds = ExitStack()
        holds.callback(slot.release)
        association = Association(arrival, self._station, holds)
        thread = threading.Thread(target=self._serve, args=(association,), name="association", daemon=True)
        with self._mutex:
            self._threads[thread] = association
        try:
            thread.start()
        except RuntimeError:  # no more threads
            self._forget(thread)
            holds.close()
            self.counters.reject("threads")
            arrival.socket.close()

    def _serve(self, association: Association) -> None:
        try:
            association.run()
        finally:
            self._forget(threading.current_thread())
            self._lobby.wake()  # which may wait for the last one

    def _give_up(self) -> None:
        self.is_broken = True
        self._lobby.wake()

    def _forget(self, thread: threading.Thread) -> None:
        with self._mutex:
            self._threads.pop(thread, None)

    def _associations(self) -> list[Association]:
        with self._mutex:
            return list(self._threads.values())

    def _await_associations(self, limit_s: float) -> None:
        """Their threads need the lobby, so it goes on."""
        deadline = time.monotonic() + limit_s
        while self._associations() and (left_s := deadline - time.monotonic()) > 0:
            self._lobby.run_once(min(left_s, ROUND_S))
            self._beat()

    def _current_config(self) -> ListenerConfig:
        """What the file says; its last good words while it cannot be read."""
        with self._config_mutex:
            try:
                self._config = self._config_file.current()
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.error("the listeners' configuration cannot be read: %s", type(error).__name__)
            return self._config

    def _is_space_short(self) -> bool:
        """Also where nobody can tell."""
        try:
            return self._space.is_short()
        except StorageError as error:
            log.error("%s", error)
            return True

    def _take_source_slot(self, source: SourceRule) -> Slot | None:
        name = hashlib.blake2b(f"{source.ae_title} {source.host}".encode(), digest_size=8).hexdigest()
        with self._mutex:
            if name not in self._source_slots:
                self._source_slots[name] = Slots(self.options.spool / "slots" / f"source-{name}")
            slots = self._source_slots[name]
        return slots.take(source.maximum_associations or 0)

    def _beat(self) -> None:
        facts = self.counters.facts(time.monotonic())
        self._beats.beat(f"listener-{self.options.number}", waiting=self._lobby.waiting, port=self.port, **facts)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" is every address of either kind
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ServiceError(
            "DICOM listener",
            f"it cannot listen on {host} port {port}: {error.strerror}",
            remedy="Free the port, or set dicom_port or dicom_tls_port to another; ports below 1024 are root's.",
        ) from error
    return listening
