"""Peers to send to: pynetdicom's SCPs with a mind of their own, sockets that misbehave."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from platform_fixture import free_port
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

STORAGE = ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"]  # CT, MR, SC
PLAIN = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


class Scp:
    """pynetdicom's SCP on a port of its own; what it received is in `received`, as (SOP Instance UID, bytes)."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.received: list[tuple[str, bytes]] = []
        self.associations = 0
        self.echoes = 0
        self.titles: list[tuple[str, str]] = []


Answer = Callable[[evt.Event, int], int]


@contextlib.contextmanager
def scp(
    answer: Answer = lambda event, number: 0x0000,
    *,
    classes: Sequence[str] = STORAGE,
    syntaxes: Sequence[str] = PLAIN,
    ae_title: str = "PEER",
    require_called: bool = False,
    port: int | None = None,
    ssl_context: Any = None,
    commitment: Callable[[evt.Event], tuple[int, Any]] | None = None,
    echo: bool = True,
) -> Iterator[Scp]:
    """An SCP that answers the number-th C-STORE (from 0) with what `answer` returns, or does."""
    ae = AE(ae_title=ae_title)
    ae.require_called_aet = require_called
    ae.maximum_pdu_size = 65_536
    ae.supported_contexts = [build_context(uid, list(syntaxes)) for uid in classes]
    if echo:
        ae.add_supported_context(Verification)
    if commitment is not None:
        ae.add_supported_context(StorageCommitmentPushModel)
    peer = Scp(port or free_port())
    lock = threading.Lock()

    def store(event: evt.Event) -> int:
        with lock:
            number = len(peer.received)
            peer.received.append((str(event.request.AffectedSOPInstanceUID), event.request.DataSet.getvalue()))
        return answer(event, number)

    def established(event: evt.Event) -> None:
        peer.associations += 1
        peer.titles.append((event.assoc.requestor.ae_title, event.assoc.requestor.primitive.called_ae_title))

    def echoed(event: evt.Event) -> int:
        peer.echoes += 1
        return 0

    handlers: list[Any] = [(evt.EVT_C_STORE, store), (evt.EVT_C_ECHO, echoed), (evt.EVT_ESTABLISHED, established)]
    if commitment is not None:
        handlers.append((evt.EVT_N_ACTION, commitment))
    server = ae.start_server(("127.0.0.1", peer.port), block=False, evt_handlers=handlers, ssl_context=ssl_context)
    try:
        yield peer
    finally:
        server.shutdown()


@contextlib.contextmanager
def silent(first: bytes = b"") -> Iterator[int]:
    """A port where connections are accepted, `first` is sent, and nothing is ever read or answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    held.append(connection)
                    connection.sendall(first)

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in held:
                connection.close()
