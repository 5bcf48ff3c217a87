"""Signs of life of the adapter's loops, for health checks and metrics: a file for each, written anew every round."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clara_flow.records.owner import boot_id

EVERY_S = 1.0
SILENT_AFTER_S = 20.0
LISTENER = "listener"  # there are several: listener-0, listener-1, ...
DESTINATION = "destination-"  # begins the names of the destinations' signs of life


@dataclass(frozen=True, slots=True)
class Beat:
    """When a loop was last heard of (Unix time), its process, and what it said of itself.

    age_s   seconds since then, by a clock that all processes of this machine share and nobody sets; since the machine
            was started again, by the time of day.
    """

    name: str
    at: float
    pid: int
    facts: Mapping[str, Any]
    age_s: float


class Heartbeats:
    """Writes the beats of one process below `folder`. For any thread; names are plain file names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told: dict[str, float] = {}

    def beat(self, name: str, **facts: float | int | str) -> None:
        """`name` went round. At most once a second it is written; a disk that is full must not end a loop."""
        now = time.monotonic()
        if now - self._told.get(name, -EVERY_S) < EVERY_S:
            return
        self._told[name] = now
        moment = {"at": time.time(), "boot": boot_id(), "since_boot_s": now}
        text = json.dumps({**moment, "pid": os.getpid(), "facts": facts})
        partial = self.folder / f".{name}.{os.getpid()}"
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.folder / f"{name}.json")


def destination_beat(name: str) -> str:
    """The name of a destination's sign of life: a plain file name."""
    return DESTINATION + re.sub(r"[^A-Za-z0-9._-]", "_", name)


def listeners(heard: Iterable[Beat]) -> list[Beat]:
    """The beats of listeners, also of some that are gone."""
    return [beat for beat in heard if beat.name.startswith(f"{LISTENER}-")]


def associations(heard: Iterable[Beat]) -> int:
    """Inbound DICOM associations now, over all listeners that are heard of."""
    return sum(int(beat.facts.get("open", 0)) for beat in listeners(heard) if beat.age_s < SILENT_AFTER_S)


def read_all(folder: Path) -> list[Beat]:
    """The last beat of every loop, by name. What cannot be read is left out."""
    beats = []
    for path in sorted(folder.glob("[!.]*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text(encoding="utf-8"))
            at, facts = float(content["at"]), dict(content["facts"])
            beats.append(Beat(path.stem, at, int(content["pid"]), facts, _age_s(content)))
    return beats


def _age_s(content: Mapping[str, Any]) -> float:
    if content["boot"] == boot_id():
        return max(0.0, time.monotonic() - float(content["since_boot_s"]))
    return max(0.0, time.time() - float(content["at"]))
