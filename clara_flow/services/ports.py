"""Ports: are they free, and if not, who has them."""

from __future__ import annotations

import socket

import psutil

from clara_flow.errors import ServiceError


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError:
            return False
    return True


def holder(port: int) -> str:
    """The process that listens on a port, as far as it can be seen: `name (pid 123)`, or ""."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return ""
    for connection in connections:
        if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
            if connection.pid is None:
                return ""
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                return ""
    return ""


def require_free(service: str, host: str, port: int, setting: str) -> None:
    """Raise ServiceError naming the port, who has it and the setting that changes it, unless it is free."""
    if not is_free(host, port):
        who = holder(port)
        raise ServiceError(
            service,
            f"port {port} on {host} is in use{f' by {who}' if who else ''}",
            remedy=f"Stop that program, or choose another port with {setting}.",
        )
