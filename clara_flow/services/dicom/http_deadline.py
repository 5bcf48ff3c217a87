"""A limit for a whole HTTP request: the client's own limits are for each read and each write, which a peer that drips
bytes never exceeds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

CONNECTED = frozenset({"connection.connect_tcp.complete", "connection.start_tls.complete"})  # httpcore's words


class CuttableConnection:
    """The one connection of an httpx client that is used by one thread; any other may cut it.

    extensions      for each request of the client.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self.extensions: dict[str, Any] = {"trace": self._trace}

    def cut(self) -> None:
        """End what the request waits for. For any thread."""
        if self._socket is not None:
            with suppress(OSError):  # of the socket itself, not of TLS: the other thread may be inside that
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    @contextmanager
    def within(self, limit_s: float) -> Iterator[Callable[[], bool]]:
        """Cut what goes on inside once it has taken `limit_s`; the function tells whether that has happened."""
        is_over = threading.Event()

        def end() -> None:
            is_over.set()
            self.cut()

        timer = threading.Timer(max(limit_s, 0.0), end)
        timer.daemon = True
        timer.start()
        try:
            yield is_over.is_set
        finally:
            timer.cancel()

    def _trace(self, event: str, facts: Mapping[str, Any]) -> None:
        """Called by the client on the way."""
        if event in CONNECTED:
            self._socket = facts["return_value"].get_extra_info("socket")
