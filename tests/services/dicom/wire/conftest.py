"""A listener in a thread of the test's process, and what became of what it received."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from services.dicom.wire.scripted_peer import ScriptedPeer

from clara_flow.services.dicom.journal_entries import Closed, Entry, Opened, Stored
from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig, SourceRule
from clara_flow.services.dicom.spool import Spool
from clara_flow.services.dicom.wire.listener import Listener, ListenerOptions, serve


class Listening:
    """A listener that runs, its configuration, and what it has stored.

    ends_with   what it has to end with; None: it ends when it is told.
    """

    def __init__(
        self, options: ListenerOptions, config: ListenerConfig, *, ends_with: type[Exception] | None = None
    ) -> None:
        self.options = options
        self.configure(config)
        self.listener = Listener(options)
        self.port = self.listener.port
        self._stop = threading.Event()
        self._ends_with = ends_with
        self._ended: Exception | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def configure(self, config: ListenerConfig) -> None:
        """Replace the configuration."""
        self.config = config
        config.write(self.options.config)

    def peer(self) -> ScriptedPeer:
        """A peer that is connected."""
        return ScriptedPeer(self.port)

    def entries(self, kind: type[Entry]) -> list[Entry]:
        """What the journals say."""
        reader = Spool(self.options.spool).reader()
        return [entry for name in reader.names() for entry in reader.entries(name) if isinstance(entry, kind)]

    def stored(self) -> list[Stored]:
        """The instances, in order."""
        return [entry for entry in self.entries(Stored) if isinstance(entry, Stored)]

    def opened(self) -> list[Opened]:
        """The associations that stored something, in order."""
        return [entry for entry in self.entries(Opened) if isinstance(entry, Opened)]

    def closed(self) -> list[Closed]:
        """How they ended, in order."""
        return [entry for entry in self.entries(Closed) if isinstance(entry, Closed)]

    def data_sets(self) -> list[bytes]:
        """The data sets of the instances, as they lie in their files."""
        return [_data_set(self.options.spool / entry.path) for entry in self.stored()]

    def files(self) -> list[Path]:
        """All files of instances, stored or not."""
        return sorted((self.options.spool / "instances").rglob("*.dcm"))

    def stop(self) -> None:
        """End it; safe to call twice."""
        self._stop.set()
        if self._thread.is_alive():
            self.listener.wake()
        self.join()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert type(self._ended) is (self._ends_with or type(None))

    def _serve(self) -> None:
        try:
            serve(self.listener, self._stop)
        except Exception as error:  # noqa: BLE001  looked at by `join`
            self._ended = error


def _data_set(path: Path) -> bytes:
    """What follows the file meta information (PS3.10 section 7.1)."""
    content = path.read_bytes()
    assert content[128:132] == b"DICM"
    return content[144 + int.from_bytes(content[140:144], "little") :]


@pytest.fixture
def options(tmp_path: Path) -> ListenerOptions:
    """Of a listener on a free port."""
    spool = tmp_path / "spool"
    return ListenerOptions(
        number=0,
        host="127.0.0.1",
        port=0,
        spool=spool,
        config=spool / "config.json",
        heartbeats=tmp_path / "heartbeats",
        fsync=False,
        watermark_percent=100,
        reserve_mib=0,
        idle_timeout_s=20,
    )


@pytest.fixture
def config() -> ListenerConfig:
    """Two AE titles, and a source on this machine."""
    rules = (
        AeTitleRule(name="brain", ae_title="BRAIN"),
        AeTitleRule(name="old", ae_title="OLD", draining=True),
    )
    return ListenerConfig(
        aetitles={rule.ae_title: rule for rule in rules},
        sources=(SourceRule(ae_title="MODALITY", host="127.0.0.1"),),
    )


@pytest.fixture
def listen(options: ListenerOptions, config: ListenerConfig) -> Iterator[Callable[..., Listening]]:
    """Starts a listener with other options than the usual."""
    with ExitStack() as stack:

        def start(**changes: object) -> Listening:
            own = changes.pop("config", config)
            assert isinstance(own, ListenerConfig)
            running = Listening(replace(options, **changes), own)  # type: ignore[arg-type]
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture
def listening(listen: Callable[..., Listening]) -> Listening:
    """A listener with the usual options."""
    return listen()
