"""A connection to a peer, with TLS where wanted, within its time; another thread can end the attempt."""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable

from clara_flow.services.dicom.export.proposals import Node
from clara_flow.services.dicom.export.sender import DestinationFailed

LOOK_S = 0.2


def dial(node: Node, is_cut: Callable[[], bool], use: Callable[[socket.socket], None]) -> None:
    """Connect to the first of the peer's addresses that answers.

    is_cut  whether the attempt shall end. use: is given the socket before each wait for the peer, so that it can be
            shut down by others; the last one given is the connection.

    Raises DestinationFailed.
    """
    deadline = time.monotonic() + node.timeout_s
    try:
        addresses = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DestinationFailed("unreachable", f"the destination cannot be reached: {in_words(error)}") from None
    problem = "it has no address"
    for family, kind, protocol, _, address in addresses:
        connection = socket.socket(family, kind, protocol)
        use(connection)
        try:
            _connect(connection, address, deadline, is_cut)
        except TimeoutError:
            problem = f"no answer within {node.timeout_s:g} s"
            connection.close()
        except OSError as error:
            problem = in_words(error)
            connection.close()
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if node.tls is not None:
                _shake_hands(node, node.tls, connection, use)
            return
    raise DestinationFailed("unreachable", f"the destination cannot be reached: {problem}")


def _connect(connection: socket.socket, address: object, deadline: float, is_cut: Callable[[], bool]) -> None:
    """Raises OSError. Looks up now and then: a connection that is not yet one cannot be shut down."""
    connection.setblocking(False)
    try:
        connection.connect(address)  # type: ignore[arg-type]
    except BlockingIOError:
        while not select.select([], [connection], [], LOOK_S)[1]:
            if is_cut() or time.monotonic() >= deadline:
                raise TimeoutError from None
    if number := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, os.strerror(number))
    connection.setblocking(True)


def _shake_hands(
    node: Node, tls: ssl.SSLContext, connection: socket.socket, use: Callable[[socket.socket], None]
) -> None:
    connection.settimeout(node.timeout_s)
    try:
        secured = tls.wrap_socket(connection, server_hostname=node.host, do_handshake_on_connect=False)
        use(secured)
        secured.do_handshake()
    except (OSError, ValueError) as error:
        raise DestinationFailed("unreachable", f"TLS with the destination failed: {in_words(error)}") from None


def in_words(error: Exception) -> str:
    """What went wrong on a connection, without addresses."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "within TLS, without a reason"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS error").replace("_", " ").lower()
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


def tls_trouble(error: BaseException) -> str:
    """The words of TLS where that is what has led to a library's error; "" where it is not."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, ssl.SSLError):
        inner = inner.__cause__ or inner.__context__
    return in_words(inner) if inner is not None else ""
