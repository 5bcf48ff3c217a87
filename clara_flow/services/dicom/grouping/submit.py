"""A complete group becomes its jobs: each once, whatever ends between, and none because another one cannot be made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from clara_flow.deployments.trigger import House, create_job
from clara_flow.errors import ClaraFlowError, InputError, LauncherUnavailable, PlatformError
from clara_flow.records import dicom_groups as records
from clara_flow.records.dicom_groups import PlannedJob, Work
from clara_flow.records.dicom_models import Group, GroupState, Submission
from clara_flow.records.models import AE_TITLE, BY_DICOM, INSTANCES, TRIGGER
from clara_flow.services.dicom.grouping.deidentified import Deidentified
from clara_flow.services.dicom.grouping.files import Files
from clara_flow.services.dicom.grouping.names import job_name
from clara_flow.services.dicom.grouping.pipelines import Pipelines
from clara_flow.services.dicom.grouping.processors import Configured, Plan
from clara_flow.services.dicom.grouping.tags import tags_of, wanted_tags

log = logging.getLogger(__name__)

POSTPONED_S = 5.0  # until it is tried again when what is missing is not the group's fault
NO_RULE = "no pipeline of its AE title is for it"


def plans_of(configured: Configured, work: Work) -> dict[str, Plan]:
    """What the processor makes of a group, by label. Raises InputError when a plug-in breaks or repeats a label."""
    try:
        plans = configured.processor.plan(configured.settings, work.group, work.instances)
        by_label = {plan.label: plan for plan in plans}
        if len(by_label) < len(plans):
            raise InputError(f"the job processor {configured.row.processor!r} gives a label to two jobs of a group")
        return by_label
    except ClaraFlowError:
        raise
    except Exception as error:  # its sentence may name a patient
        raise InputError(f"the job processor {configured.row.processor!r} broke: {type(error).__name__}") from error


class Submitter:
    """Makes jobs of groups; for any thread, one at a time for a group. Raises SettingsError for tags that are none."""

    def __init__(self, house: House, files: Files) -> None:
        self.house, self.files = house, files
        self._pipelines = Pipelines(house)
        self._deidentified = Deidentified(house, files.spool)
        self._tags = wanted_tags(house.settings)

    def submit(self, group_id: UUID, configured: Configured | None) -> None:
        """Make the jobs of a complete group that were not made yet; what fails is noted, and tried again later.

        configured      its AE title; None: there is none of that name, or its settings cannot be used.

        Raises ServiceError when the database is away.
        """
        work = records.work_of(self.house.engine, group_id)
        if work.group.state is not GroupState.COMPLETE:
            return
        try:
            if configured is None:
                raise InputError(
                    f"the AE title {work.group.aetitle!r} is not there any more, or its settings cannot be used; "
                    "set it right and retry the group, or discard it"
                )
            work, plans = self._planned(work, configured)
            problems = self._make_all(work, plans, configured) if work.submissions else {}
        except ClaraFlowError as error:
            problems = {"": error}
        if problems:
            self._note(work.group, configured, problems)
        elif work.submissions:
            records.finish(self.house.engine, group_id)
            self._deidentified.remove(group_id)
            self.files.remove(group_id)
            log.info("group %s became %d jobs of %d instances", group_id, len(work.submissions), len(work.instances))
        else:
            records.drop(self.house.engine, group_id, NO_RULE)
            self.files.remove(group_id)
            log.info("group %s becomes no job: %s", group_id, NO_RULE)

    def _planned(self, work: Work, configured: Configured) -> tuple[Work, dict[str, Plan]]:
        """With its jobs noted, where that could not be done before, or somebody wanted it done anew."""
        plans = plans_of(configured, work)
        if all(row.submitted for row in work.submissions):
            planned = [PlannedJob(plan.label, plan.pipeline) for plan in plans.values()]
            work = records.plan(self.house.engine, work.group.id, planned)
        return work, plans

    def _make_all(
        self, work: Work, plans: Mapping[str, Plan], configured: Configured
    ) -> dict[str, ClaraFlowError]:  # fmt: skip
        """Make what was not made; the problems by label."""
        problems: dict[str, ClaraFlowError] = {}
        sources = self.files.sources(work.instances)
        if profile := configured.row.deidentify:
            sources = self._deidentified.sources(work.group.id, sources, profile)
        metadata = self._metadata(configured, sources)
        for row in work.submissions:
            if row.submitted:
                continue
            try:
                self._make(work.group, row, plans.get(row.label), sources, metadata)
                records.note_submitted(self.house.engine, work.group.id, row.label)
            except ClaraFlowError as error:
                problems[row.label] = error
                records.note_problem(self.house.engine, work.group.id, row.label, str(error))
        return problems

    def _make(
        self,
        group: Group,
        row: Submission,
        plan: Plan | None,
        sources: Mapping[str, Path],
        metadata: Mapping[str, str],
    ) -> None:
        plan = plan or Plan(label=row.label, pipeline=row.pipeline)  # its AE title was changed meanwhile
        settings = self.house.settings
        create_job(
            self.house,
            self._pipelines.resolve(row.pipeline, plan.arguments),
            source=sources,
            runtime=settings.runtime,
            name=job_name(group.called_ae or group.aetitle, row.label, group.completed or datetime.now(UTC)),
            priority=plan.priority,
            tenant=group.aetitle,
            job_id=row.job_id,
            metadata=metadata,
        )

    def _metadata(self, configured: Configured, sources: Mapping[str, Path]) -> dict[str, str]:
        made_by = {TRIGGER: BY_DICOM, AE_TITLE: configured.row.ae_title}
        attributes = tags_of(sources.values(), self._tags)
        return {**attributes, **made_by, "Source": configured.source, INSTANCES: str(len(sources))}

    def _note(self, group: Group, configured: Configured | None, problems: Mapping[str, ClaraFlowError]) -> None:
        """It is tried again; what is wrong with the platform (a full disk, a service) counts for nothing."""
        message = "; ".join(f"{label}: {error}" if label else str(error) for label, error in problems.items())
        if all(
            isinstance(error, PlatformError) and not isinstance(error, LauncherUnavailable)
            for error in problems.values()
        ):
            records.postpone(self.house.engine, group.id, message, delay_s=POSTPONED_S)
            log.warning("the jobs of group %s wait: %s", group.id, message)
            return
        settings = self.house.settings
        own_delay_s = configured.settings.retry_delay_s if configured is not None else None
        delay_s = settings.dicom_submit_retry_delay_s if own_delay_s is None else own_delay_s
        after = records.fail(
            self.house.engine, group.id, message, retries=settings.dicom_submit_retries, delay_s=delay_s
        )
        what = "cannot be made" if after.state is GroupState.FAILED else f"are tried again in {delay_s:g} s"
        log.warning("jobs of group %s %s: %s", group.id, what, message)
