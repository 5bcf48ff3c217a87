"""What a listener process has done and is doing, in numbers: nothing of it leads to a patient."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Progress:
    """One association: our id, that of the spool once it stored something; when it began (monotonic seconds), what it
    has brought.
    """

    association: str
    began: float
    instances: int = 0
    received_bytes: int = 0


@dataclass
class Counters:
    """Since the process started. For any thread."""

    totals: Counter[str] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    open: set[Progress] = field(default_factory=set)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, amount: int = 1) -> None:
        """Count something."""
        with self._mutex:
            self.totals[name] += amount

    def reject(self, name: str) -> None:
        """Count a connection that got no association."""
        with self._mutex:
            self.rejections[name] += 1

    def answer(self, status: int) -> None:
        """Count the answer to a C-STORE."""
        with self._mutex:
            self.statuses[status] += 1

    def enter(self, progress: Progress) -> None:
        """An association is there."""
        with self._mutex:
            self.totals["associations"] += 1
            self.open.add(progress)

    def leave(self, progress: Progress, how: str) -> None:
        """It is over: released, aborted or lost."""
        with self._mutex:
            self.totals[how] += 1
            self.open.discard(progress)

    def facts(self, now: float) -> dict[str, int | str]:
        """For a heartbeat: numbers by name, and the open associations as JSON text."""
        with self._mutex:
            associations = [
                {
                    "association": each.association,
                    "age_s": round(now - each.began, 1),
                    "instances": each.instances,
                    "bytes": each.received_bytes,
                }
                for each in self.open
            ]
            facts: dict[str, int | str] = {"open": len(associations), **self.totals}
            facts |= {f"rejected_{name}": count for name, count in self.rejections.items()}
            facts |= {f"status_{status:04X}": count for status, count in self.statuses.items()}
        return {**facts, "open_associations": json.dumps(associations)}
