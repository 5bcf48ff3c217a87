"""Connections without an association: those that have not asked for one yet, and those that only have to be closed.

They cost no thread and little memory: as many as there may be have a place, and whoever comes then gets the place of
the one that waits longest. So neither half-open connections nor health checks that connect and close take anything
away from peers that ask at once, as all do.
"""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import ssl
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from clara_flow.services.dicom.wire.pdu import ABORT_BY_USER, HEADER, PduType

log = logging.getLogger(__name__)

WAITING_PLACES = 256
LEAVING_PLACES = 256
MAXIMUM_REQUEST_BYTES = 256 * 1024  # 128 contexts with 30 transfer syntaxes each
LEAVE_S = 2.0  # a peer has to close after the last word (the ARTIM timer of PS3.8 section 9.1.5)
ACCEPTED_AT_ONCE = 64
DISCARDED_BYTES = 64 * 1024
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
BREATHER_S = 0.05
WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True, slots=True)
class Entrance:
    """A socket that listens, and how TLS is spoken there; None: not at all."""

    socket: socket.socket
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A peer that has sent its whole A-ASSOCIATE-RQ; `request` is what follows the header."""

    socket: socket.socket
    peer: str
    request: bytes


@dataclass(eq=False, slots=True)
class _Waiting:
    socket: socket.socket
    peer: str
    deadline: float
    shakes_hands: bool
    data: bytearray = field(default_factory=bytearray)
    needed: int = HEADER.size


@dataclass(eq=False, slots=True)
class _Leaving:
    socket: socket.socket
    deadline: float


class Lobby:
    """One thread runs it; others may only `dismiss` and `wake`.

    on_arrival      takes over the connection, blocking again, from within `run`: it must not wait for anything.
    on_refused      is told why a connection ended before it asked for an association: timeout, crowded, pdu or tls.
    """

    def __init__(
        self,
        entrances: Sequence[Entrance],
        *,
        on_arrival: Callable[[Arrival], None],
        on_refused: Callable[[str], None],
        request_timeout_s: float,
    ) -> None:
        self._on_arrival = on_arrival
        self._on_refused = on_refused
        self._request_timeout_s = request_timeout_s
        self._waiting: OrderedDict[_Waiting, None] = OrderedDict()  # the oldest first, like the next
        self._leaving: OrderedDict[_Leaving, None] = OrderedDict()
        self._dismissed: deque[socket.socket] = deque()
        self._scratch = bytearray(DISCARDED_BYTES)
        self._selector = selectors.DefaultSelector()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._entrances = list(entrances)
        for entrance in entrances:
            entrance.socket.setblocking(False)
            self._selector.register(entrance.socket, selectors.EVENT_READ, entrance)

    @property
    def waiting(self) -> int:
        """Connections that have not asked for an association yet."""
        return len(self._waiting)

    def run_once(self, timeout_s: float) -> None:
        """Serve what happens, for `timeout_s` seconds at most."""
        for key, _ in self._selector.select(max(0.0, min(timeout_s, self._until_deadline_s()))):
            if isinstance(key.data, Entrance):
                self._accept(key.data)
            elif isinstance(key.data, _Waiting):
                if key.data in self._waiting:
                    self._read(key.data)
            elif isinstance(key.data, _Leaving):
                if key.data in self._leaving:
                    self._discard(key.data)
            else:
                self._hear()
        while self._dismissed:
            self._see_out(self._dismissed.popleft())
        self._end_late()

    def dismiss(self, connection: socket.socket) -> None:
        """Close a connection to which the last word was said, once its peer did or has had the time. Any thread's."""
        self._dismissed.append(connection)
        self.wake()

    def wake(self) -> None:
        """Let `run_once` return. For any thread, and for signal handlers."""
        with suppress(OSError):
            self._bell.send(b"\0")

    def close_entrances(self) -> None:
        """Take nobody in any more."""
        for entrance in self._entrances:
            self._selector.unregister(entrance.socket)
            entrance.socket.close()
        self._entrances.clear()

    def close(self) -> None:
        """Close everything."""
        self.close_entrances()
        for waiting in self._waiting:
            waiting.socket.close()
        for leaving in self._leaving:
            leaving.socket.close()
        for connection in self._dismissed:
            connection.close()
        self._waiting.clear()
        self._leaving.clear()
        self._selector.close()
        self._bell.close()
        self._ear.close()

    def _until_deadline_s(self) -> float:
        deadlines = [waiting.deadline for waiting in islice(self._waiting, 1)]
        deadlines += [leaving.deadline for leaving in islice(self._leaving, 1)]
        return min(deadlines) - time.monotonic() if deadlines else float("inf")

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            while self._ear.recv(4096):
                pass

    def _accept(self, entrance: Entrance) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, address = entrance.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in NO_DESCRIPTORS:
                    log.warning("no connection can be accepted: %s", error.strerror)
                    self._make_room(for_all=True)
                    time.sleep(BREATHER_S)
                    return
                continue  # the peer has gone already
            self._take_in(entrance, connection, str(address[0]))

    def _take_in(self, entrance: Entrance, connection: socket.socket, peer: str) -> None:
        if len(self._waiting) >= WAITING_PLACES:
            self._make_room()
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if entrance.tls is not None:
                connection = entrance.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        except OSError:
            connection.close()
            return
        deadline = time.monotonic() + self._request_timeout_s
        waiting = _Waiting(connection, peer, deadline, shakes_hands=entrance.tls is not None)
        self._waiting[waiting] = None
        self._selector.register(connection, selectors.EVENT_READ, waiting)

    def _make_room(self, *, for_all: bool = False) -> None:
        """Give the place of the one that waits longest to another, or those of one in four."""
        for _ in range(max(1, len(self._waiting) // 4) if for_all else 1):
            if self._waiting:
                self._drop(next(iter(self._waiting)), "crowded")

    def _read(self, waiting: _Waiting) -> None:
        try:
            if waiting.shakes_hands:
                waiting.socket.do_handshake()  # type: ignore[attr-defined]
                waiting.shakes_hands = False
            while True:
                data = waiting.socket.recv(waiting.needed - len(waiting.data))
                if not data:
                    self._drop(waiting, "")
                    return
                waiting.data += data
                if len(waiting.data) < waiting.needed:
                    continue
                if waiting.needed == HEADER.size and not self._begin_request(waiting):
                    return
                if len(waiting.data) == waiting.needed:
                    self._hand_over(waiting)
                    return
        except WAIT as wait:
            writes = selectors.EVENT_WRITE if isinstance(wait, ssl.SSLWantWriteError) else 0
            self._selector.modify(waiting.socket, selectors.EVENT_READ | writes, waiting)
        except ssl.SSLError:
            self._drop(waiting, "tls")
        except (OSError, ValueError):
            self._drop(waiting, "")

    def _begin_request(self, waiting: _Waiting) -> bool:
        """Look at the header of the first PDU (state Sta2 of PS3.8 section 9.2); False: the connection is over."""
        kind, length = HEADER.unpack(waiting.data)
        if kind == PduType.ASSOCIATE_RQ and 0 < length <= MAXIMUM_REQUEST_BYTES:
            waiting.needed = HEADER.size + length
            return True
        if kind == PduType.ABORT:
            self._drop(waiting, "")
            return False
        self._forget(waiting)
        with suppress(OSError, ValueError):
            waiting.socket.send(ABORT_BY_USER)  # AA-1
        self._on_refused("pdu")
        self._see_out(waiting.socket)
        return False

    def _hand_over(self, waiting: _Waiting) -> None:
        self._forget(waiting)
        waiting.socket.setblocking(True)
        self._on_arrival(Arrival(waiting.socket, waiting.peer, bytes(waiting.data[HEADER.size :])))

    def _see_out(self, connection: socket.socket) -> None:
        if len(self._leaving) >= LEAVING_PLACES:
            self._close(next(iter(self._leaving)))
        leaving = _Leaving(connection, time.monotonic() + LEAVE_S)
        try:
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, leaving)
        except (OSError, ValueError, KeyError):
            connection.close()
            return
        self._leaving[leaving] = None
        self._discard(leaving)  # TLS may hold bytes that no selector sees

    def _discard(self, leaving: _Leaving) -> None:
        try:
            if not leaving.socket.recv_into(self._scratch):
                self._close(leaving)
        except WAIT:
            return
        except (OSError, ValueError):
            self._close(leaving)

    def _end_late(self) -> None:
        now = time.monotonic()
        while self._waiting and (waiting := next(iter(self._waiting))).deadline <= now:
            self._drop(waiting, "timeout")
        while self._leaving and (leaving := next(iter(self._leaving))).deadline <= now:
            self._close(leaving)

    def _drop(self, waiting: _Waiting, reason: str) -> None:
        self._forget(waiting)
        waiting.socket.close()
        if reason:
            self._on_refused(reason)

    def _forget(self, waiting: _Waiting) -> None:
        del self._waiting[waiting]
        self._selector.unregister(waiting.socket)

    def _close(self, leaving: _Leaving) -> None:
        del self._leaving[leaving]
        with suppress(KeyError, ValueError):
            self._selector.unregister(leaving.socket)
        leaving.socket.close()
