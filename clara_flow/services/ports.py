"""Ports: are they free, and if not, who has them."""

from __future__ import annotations

import errno
import socket

from clara_flow.errors import ServiceError, SettingsError


def why_not_free(host: str, port: int) -> str:
    """Why no server could listen there now, naming who does where that can be seen; "" when it could.

    Raises SettingsError when `host` is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise SettingsError(f"CLARA_FLOW_HOST: {host!r} is no address or host name: {error.strerror}") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise SettingsError(f"CLARA_FLOW_HOST: {host} is no address of this machine") from None
            if error.errno != errno.EADDRINUSE:
                return f"port {port} on {host} cannot be used: {error.strerror}"
            who = holder(port)
            return f"port {port} on {host} is in use{f' by {who}' if who else ''}"
    return ""


def holder(port: int) -> str:
    """The process that listens on a port, as far as it can be seen: `name (pid 123)`, or ""."""
    import psutil

    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid is not None:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        return ""
    return ""


def require_free(service: str, host: str, port: int, setting: str) -> None:
    """Raise ServiceError naming the port, who has it and the setting that changes it, unless it is free."""
    if reason := why_not_free(host, port):
        raise ServiceError(service, reason, remedy=f"Stop that program, or choose another port with {setting}.")
