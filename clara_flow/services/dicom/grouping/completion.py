"""Which open groups are complete now, and closing them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self
from uuid import UUID

import sqlalchemy as sa

from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups as records
from clara_flow.records import dicom_steps as steps
from clara_flow.records.database import DatabaseAway, TransactionConflict
from clara_flow.records.dicom_group_queries import GroupFacts
from clara_flow.records.dicom_groups import PlannedJob
from clara_flow.records.dicom_ingest import GroupingRule, Ingested
from clara_flow.services.dicom.grouping import source_query
from clara_flow.services.dicom.grouping.ae_title import AeTitleProcessor
from clara_flow.services.dicom.grouping.completeness import (
    Expected,
    Performed,
    from_attributes,
    from_history,
    from_steps,
    verdict,
)
from clara_flow.services.dicom.grouping.processors import Configured
from clara_flow.services.dicom.grouping.submit import plans_of
from clara_flow.services.dicom.grouping.watch import Watch

log = logging.getLogger(__name__)

ASKED_AT_ONCE = 2  # sources

ConfiguredFor = Callable[[str], Configured | None]


def performed_of(engine: sa.Engine, facts: GroupFacts, configured: Configured | None) -> Performed | None:
    """What its modality says of a group, where that counts for its AE title."""
    if configured is None or "mpps" not in configured.settings.expect:
        return None
    return from_steps(steps.steps_of(engine, facts.id, configured.row.ignored_sop_classes))


class Completion:
    """For one thread; a context manager, since sources are asked by others."""

    def __init__(self, house: House, configured_for: ConfiguredFor) -> None:
        self.house = house
        self.watch = Watch()
        self._configured_for = configured_for
        self._pool = ThreadPoolExecutor(ASKED_AT_ONCE, "source-query")
        self._asked: dict[UUID, Future[int | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def resume(self, open_groups: Iterable[tuple[UUID, str, float]]) -> None:
        """Learn of open groups from the tables, and look at all; those known already begin their wait anew."""
        for group_id, aetitle, left_s in open_groups:
            timeout_s = self._timeout_s(aetitle)
            self.watch.resume(group_id, timeout_s, timeout_s if group_id in self.watch else left_s)
            self.watch.look_in(group_id, 0.0)

    def look(self, ingested: Ingested) -> int:
        """Close what is complete after this was taken in; how many groups."""
        for group_id, aetitle in ingested.touched.items():
            self.watch.arrived(group_id, self._timeout_s(aetitle))
        answered = {group_id for group_id, asked in self._asked.items() if asked.done()}
        ids = ingested.settled | ingested.spoken_of | self.watch.due() | answered
        if not ids:
            return 0
        found = {facts.id: facts for facts in queries.facts_of(self.house.engine, ids)}
        for group_id in ids - found.keys():  # not open any more
            self._forget(group_id)
        return sum(self._look_at(facts, ended=facts.id in ingested.settled) for facts in found.values())

    def _look_at(self, facts: GroupFacts, *, ended: bool) -> bool:
        """Whether it was complete, and is closed now. ended: an association of it ended just now."""
        configured = self._configured_for(facts.aetitle)
        if facts.id not in self.watch:
            self.watch.arrived(facts.id, 0.0)
        expected = None
        if configured is not None and not facts.open_associations:
            if ended and "find" in configured.settings.expect:
                self._ask(facts)
            expected = self._expected(facts, configured)
        found = verdict(
            facts,
            idle_s=self.watch.idle_s(facts.id),
            timeout_s=self._timeout_s(facts.aetitle),
            expected=expected,
            performed=performed_of(self.house.engine, facts, configured),
            mpps_timeout_s=configured.settings.mpps_timeout_s if configured is not None else 0.0,
        )
        if not found.is_complete:
            self.watch.look_in(facts.id, found.wait_s)
            return False
        closed = records.complete(
            self.house.engine,
            facts.id,
            self._planned(facts.id, configured),
            instances=facts.instances,
            rule=found.rule,
            expected=found.expected.instances if found.expected else None,
        )
        if closed is None:  # it has changed meanwhile
            self.watch.look_in(facts.id, 0.0)
            return False
        self._forget(facts.id)
        log.info(
            "group %s of %s is complete with %d instances: %s", facts.id, facts.aetitle, facts.instances, found.rule
        )
        return True

    def _planned(self, group_id: UUID, configured: Configured | None) -> list[PlannedJob]:
        """None where that cannot be said now: then whoever makes the jobs tells people why. A plug-in is asked by
        them, too: one that takes its time must not keep all other groups."""
        if configured is None or not isinstance(configured.processor, AeTitleProcessor):
            return []
        try:
            plans = plans_of(configured, records.work_of(self.house.engine, group_id))
        except (DatabaseAway, TransactionConflict):
            raise
        except ClaraFlowError:
            return []
        return [PlannedJob(plan.label, plan.pipeline) for plan in plans.values()]

    def _expected(self, facts: GroupFacts, configured: Configured) -> Expected | None:
        """With what the source has answered meanwhile."""
        asked = self._asked.get(facts.id)
        if asked is None or not asked.done():
            return expectation(self.house.engine, facts, configured)
        if (error := asked.exception()) is not None:
            log.warning("a source could not be asked: %s", type(error).__name__)
            return expectation(self.house.engine, facts, configured)
        return expectation(self.house.engine, facts, configured, told=asked.result())

    def _ask(self, facts: GroupFacts) -> None:
        """Ask the source, in another thread; its answer makes the group be looked at again."""
        if not facts.study_uid or (facts.id in self._asked and not self._asked[facts.id].done()):
            return
        destination = source_query.destination_of(self.house.engine, facts.calling_ae)
        if destination is not None:
            own_title = self.house.settings.dicom_scu_ae_title
            self._asked[facts.id] = self._pool.submit(
                source_query.study_instances, destination, facts.study_uid, calling_ae=own_title
            )

    def _forget(self, group_id: UUID) -> None:
        self.watch.drop(group_id)
        self._asked.pop(group_id, None)

    def _timeout_s(self, aetitle: str) -> float:
        configured = self._configured_for(aetitle)
        return configured.settings.timeout_s if configured is not None else GroupingRule().timeout_s


def expectation(
    engine: sa.Engine, facts: GroupFacts, configured: Configured, *, told: int | None = None
) -> Expected | None:
    """The largest number of instances that anybody tells whom its AE title believes; told: by its source."""
    expect = configured.settings.expect
    numbers = [None if told is None else Expected(told, "its source")]
    if "attributes" in expect:
        numbers.append(from_attributes(facts, configured.settings.group_by))
    if "history" in expect:
        numbers.append(from_history(facts, queries.earlier_shapes(engine, facts.aetitle, facts.calling_ae)))
    return max(filter(None, numbers), key=lambda one: one.instances, default=None)
