"""Reads the spool's journals into the tables, and forgets those that are over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError

from clara_flow.errors import StorageError
from clara_flow.records import dicom_ingest as records
from clara_flow.records.dicom_ingest import GroupingRule, Ingested
from clara_flow.records.dicom_lines import Step
from clara_flow.services.dicom import journal_entries
from clara_flow.services.dicom.export.commitment import note_report
from clara_flow.services.dicom.journal import JournalReader
from clara_flow.services.dicom.procedure_steps import ProcedureSteps

log = logging.getLogger(__name__)

BATCH = 1000  # lines in one transaction
OVER_S = 1.0  # between looks whether a journal's writer is gone

Rules = Callable[[set[str]], Mapping[str, GroupingRule]]


class JournalIntake:
    """For one thread. rules: gives those of all AE titles, and learns the names of those that are needed now."""

    def __init__(self, engine: sa.Engine, spool: Path, rules: Rules) -> None:
        self.engine = engine
        self.reader = JournalReader(spool)
        self._steps = ProcedureSteps(spool)
        self._rules = rules
        self._offsets: dict[str, int] | None = None
        self._over_at = 0.0

    def forget(self) -> None:
        """What is known of the tables may be wrong: look again."""
        self._offsets = None

    def take(self) -> Ingested:
        """Read what stands in the journals now; what is written meanwhile is for the next time.

        Raises ServiceError, StaleOwner when somebody else reads, too; then call `forget`.
        """
        if self._offsets is None:
            self._offsets = records.offsets(self.engine)
            self._over_at = 0.0
        names = self.reader.names()
        look_for_over = time.monotonic() >= self._over_at
        touched: dict[UUID, str] = {}
        settled: set[UUID] = set()
        spoken_of: set[UUID] = set()
        for name in names:
            over = look_for_over and self.reader.is_over(name)  # asked before it is read to its end
            try:
                for ingested in self._read(name, over):
                    touched |= ingested.touched
                    settled |= ingested.settled
                    spoken_of |= ingested.spoken_of
            except StorageError as error:  # one that cannot be read must not keep the others
                log.error("journal %s: %s", name, error)
        if look_for_over:
            for name in self._offsets.keys() - set(names):  # removed, and then a process ended
                records.forget_journal(self.engine, name)
                del self._offsets[name]
            self._over_at = time.monotonic() + OVER_S
        return Ingested(touched, frozenset(settled), frozenset(spoken_of))

    def _read(self, name: str, over: bool) -> Iterator[Ingested]:
        assert self._offsets is not None  # noqa: S101 - for the type checker
        size, limit = self._size(name), BATCH
        while (offset := self._offsets.get(name, 0)) < size:
            entries, new_offset = self.reader.read(name, offset, limit)
            if new_offset == offset:  # half a line
                break
            rules = self._rules({entry.aetitle for entry in entries if isinstance(entry, journal_entries.Opened)})
            self._note_reports(entries)  # before the offset moves: what is noted twice is noted once
            lines = [line for entry in entries if (line := line_of(entry, self._steps)) is not None]
            try:
                ingested = records.ingest(self.engine, name, lines, offset=offset, new_offset=new_offset, rules=rules)
            except (DataError, IntegrityError) as error:
                if limit > 1:  # one of them cannot be kept: it is found by taking them one by one
                    limit = 1
                    continue
                log.error("journal %s: the line at byte %d is left out: %s", name, offset, type(error.orig).__name__)
                ingested = records.ingest(self.engine, name, [], offset=offset, new_offset=new_offset, rules=rules)
            self._offsets[name] = new_offset
            yield ingested
        if over:
            yield records.lose_journal(self.engine, name, offset=self._offsets.get(name, 0))
            self.reader.remove(name)
            records.forget_journal(self.engine, name)
            self._offsets.pop(name, None)

    def _note_reports(self, entries: Sequence[journal_entries.Entry]) -> None:
        for entry in entries:
            if isinstance(entry, journal_entries.CommitmentReported):
                is_ours = note_report(self.engine, entry.transaction, set(entry.ok), entry.failed)
                what = "a report of storage commitment" if is_ours else "a report of a storage commitment not asked for"
                log.info(
                    "association %s: %s of %d instances", entry.association, what, len(entry.ok) + len(entry.failed)
                )

    def _size(self, name: str) -> int:
        try:
            return (self.reader.folder / name).stat().st_size
        except FileNotFoundError:
            return 0


def line_of(entry: journal_entries.Entry, steps: ProcedureSteps) -> records.Line | None:
    """A journal's entry as the tables take it; None for what is noted elsewhere, or cannot be read any more."""
    match entry:
        case journal_entries.Opened():
            return records.Opened(
                association=entry.association, at=entry.at, calling_ae=entry.calling, called_ae=entry.called,
                aetitle=entry.aetitle, peer=entry.peer, require_release=entry.require_release,
            )  # fmt: skip
        case journal_entries.Stored():
            return records.Stored(
                association=entry.association, at=entry.at, path=entry.path, size_bytes=entry.size,
                sop_class_uid=entry.sop_class, sop_instance_uid=entry.sop_instance, study_uid=entry.study,
                series_uid=entry.series, transfer_syntax=entry.transfer_syntax, attributes=entry.attributes,
                keys=entry.keys,
            )  # fmt: skip
        case journal_entries.Closed():
            return records.Closed(association=entry.association, at=entry.at, how=entry.how)
        case journal_entries.Stepped():
            step = _step_of(entry, steps)
            return records.Stepped(association=entry.association, at=entry.at, step=step) if step else None
        case journal_entries.CommitmentAsked():
            return records.CommitmentAsked(
                association=entry.association, at=entry.at, report=entry.report, transaction_uid=entry.transaction,
                references=entry.references, is_last=entry.is_last,
            )  # fmt: skip
        case journal_entries.CommitmentTold():
            return records.CommitmentTold(association=entry.association, at=entry.at, report=entry.report)
        case journal_entries.CommitmentReported():
            return None


def _step_of(entry: journal_entries.Stepped, steps: ProcedureSteps) -> Step | None:
    try:
        return steps.read(entry.path)
    except ValueError as error:
        log.error("%s: %s", entry.path, error)
        return None
