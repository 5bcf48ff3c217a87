"""Hears what the database NOTIFYs, on a connection of its own, through any loss of the database."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql

from clara_flow.records.database import CONNECT_ARGUMENTS, FIRST_PAUSE_S, LONGEST_PAUSE_S, with_driver

Notice = tuple[str, dict[str, Any]]
RECONNECTED: Notice = ("", {"reconnected": True})


class Doorbell:
    """Listens on `channels` from its making on. For one thread; `interrupt` is for any other.

    database    address or engine (only its address is used).

    A database that is away is no error: `wait` comes back to it. Linux only (eventfd). Raises SettingsError.
    """

    def __init__(self, database: str | sa.Engine, channels: Sequence[str]) -> None:
        url = database if isinstance(database, str) else database.url.render_as_string(hide_password=False)
        self._url = sa.make_url(with_driver(url, "psycopg"))
        self._channels = tuple(channels)
        self._interruption = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._connection: psycopg.Connection | None = None
        self._pause_s = FIRST_PAUSE_S
        self._retry_at = 0.0
        self._closed = False
        self._connect()

    def wait(self, timeout_s: float) -> list[Notice]:
        """What was rung for: (channel, facts) in the order sent; [] after `timeout_s` or `interrupt`.

        `("", {"reconnected": True})` is first after the database had been away: whatever was rung for meanwhile is
        unknown, so the caller must look at the rows again. A payload that is no JSON object is left out.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            notices = self._notices()
            if notices or self._interrupted(deadline):
                return notices
            if time.monotonic() >= deadline:
                return self._notices()

    def interrupt(self) -> None:
        """Make the `wait` that is under way, or the next one, return at once. For any thread, before `close`."""
        os.eventfd_write(self._interruption, 1)

    def close(self) -> None:
        """Stop listening; may be repeated. Not while another thread waits: interrupt and join it first."""
        if not self._closed:
            self._closed = True
            self._disconnect()
            os.close(self._interruption)

    def _notices(self) -> list[Notice]:
        """What has come, without waiting for it."""
        notices: list[Notice] = []
        if self._connection is None:
            if not self._connect():
                return []
            notices.append(RECONNECTED)
        assert self._connection is not None  # noqa: S101 - for the type checker
        try:
            for notify in self._connection.notifies(timeout=0):
                facts = _object(notify.payload)
                if facts is not None:
                    notices.append((notify.channel, facts))
        except psycopg.Error:
            self._disconnect()
        return notices

    def _interrupted(self, deadline: float) -> bool:
        """Wait for the connection to say something or the time to try again; whether somebody interrupted."""
        poller, until = select.poll(), deadline
        poller.register(self._interruption, select.POLLIN)
        if self._connection is None:
            until = min(deadline, self._retry_at)
        else:
            poller.register(self._connection.fileno(), select.POLLIN)
        ready = poller.poll(max(0.0, until - time.monotonic()) * 1000)
        if any(descriptor == self._interruption for descriptor, _ in ready):
            os.eventfd_read(self._interruption)
            return True
        return False

    def _connect(self) -> bool:
        """Try to listen again, unless that was tried a moment ago."""
        if time.monotonic() < self._retry_at:
            return False
        try:
            self._connection = psycopg.connect(
                self._url.set(drivername="postgresql").render_as_string(hide_password=False),
                autocommit=True,
                **CONNECT_ARGUMENTS,  # type: ignore[arg-type]
            )
            for channel in self._channels:
                self._connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        except psycopg.Error:
            self._disconnect()
            self._retry_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            return False
        self._pause_s, self._retry_at = FIRST_PAUSE_S, 0.0
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _object(payload: str) -> dict[str, Any] | None:
    try:
        facts = json.loads(payload)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None
