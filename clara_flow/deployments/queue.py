"""The queue as people see it: the ledger's own answers, computed from the rows by whoever asks."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from clara_flow.infra.ledger.model import WaitsFor
from clara_flow.infra.pool.dispatcher import in_words, read_ledger
from clara_flow.records import jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRow:
    """One who waits. operator "": the job itself; begins_in_s None: nothing can be said."""

    position: int
    job_id: UUID
    name: str
    operator: str
    tenant: str
    priority: str
    waited_s: float
    reason: str
    holders: tuple[UUID, ...]
    begins_in_s: float | None

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self) | {"job_id": str(self.job_id), "holders": [str(holder) for holder in self.holders]}


def waiting(engine: sa.Engine, *, limit: int, ageing_s: float) -> tuple[list[WaitingRow], int]:
    """The first `limit` of those who wait, in the order in which they would be served, and how many wait in all."""
    now = time.time()
    ledger = read_ledger(engine, ageing_s=ageing_s, now=now)
    answers = ledger.queue(now, limit)
    forecast = ledger.forecast(now)
    names = jobs.names(engine, {ask.job_id for ask, _ in answers})
    rows = [
        WaitingRow(
            position=position,
            job_id=ask.job_id,
            name=names.get(ask.job_id, ""),
            operator=ask.operator,
            tenant=ask.tenant,
            priority=ask.priority.name,
            waited_s=max(0.0, now - ask.asked),
            reason=in_words(answer),
            holders=answer.holders if isinstance(answer, WaitsFor) else (),
            begins_in_s=max(0.0, forecast[ask.id] - now) if ask.id in forecast else None,
        )
        for position, (ask, answer) in enumerate(answers, start=1)
    ]
    return rows, len(ledger.asks)
