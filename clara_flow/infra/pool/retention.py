"""How long what is over is kept: rules without a clock, a database or a disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from clara_flow.records.upkeep import IdlePayload
from clara_flow.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """For how many seconds what is kept, counted from the job's end; 0: for ever.

    completed_s     payloads of jobs that completed; failed_s: of all others.
    orphans_s       payloads whose maker was killed before it made their job; these are never kept for ever.
    least_s         nothing younger is removed, whatever the other rules say and however full the disk is.
    """

    completed_s: float
    failed_s: float
    logs_s: float
    records_s: float
    orphans_s: float
    least_s: float

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The administrator's."""
        return cls(
            completed_s=settings.payload_retention_s,
            failed_s=settings.failed_payload_retention_s,
            logs_s=settings.job_log_retention_s,
            records_s=settings.job_record_retention_s,
            orphans_s=settings.orphan_payload_s,
            least_s=settings.least_retention_s,
        )

    def payload_s(self, payload: IdlePayload) -> float:
        """For how long a payload is kept; 0: for ever."""
        if not payload.job_ids:
            return self.orphans_s
        kept_s = self.completed_s if payload.completed else self.failed_s
        return max(kept_s, self.least_s) if kept_s else 0.0

    def before(self, kept_s: float, now: datetime) -> datetime | None:
        """What ended before this moment is not kept any longer; None: everything is."""
        return now - timedelta(seconds=max(kept_s, self.least_s)) if kept_s else None


def overdue(payloads: Iterable[IdlePayload], rules: Rules, now: datetime) -> list[IdlePayload]:
    """The payloads whose time is over."""
    return [
        payload
        for payload in payloads
        if (kept_s := rules.payload_s(payload)) and now - payload.idle_since >= timedelta(seconds=kept_s)
    ]


def early(payloads: Sequence[IdlePayload], rules: Rules, now: datetime) -> list[IdlePayload]:
    """The payloads that may go before their time when the disk is too full, the longest idle first.

    Those that are kept for ever are not among them, nor those that are younger than the least.
    """
    least = timedelta(seconds=rules.least_s)
    may_go = (payload for payload in payloads if rules.payload_s(payload) and now - payload.idle_since >= least)
    return sorted(may_go, key=lambda payload: payload.idle_since)
