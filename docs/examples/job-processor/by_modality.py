"""A job processor: a pipeline for each modality, at once for studies of the emergency department's scanners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from clara_flow.errors import SettingsError
from clara_flow.records.dicom_models import Group, Instance
from clara_flow.records.state_machine import JobPriority
from clara_flow.services.dicom.grouping.processors import Plan, ProcessorSettings

PIPELINE = "pipeline-"


class Settings(ProcessorSettings):
    """pipelines: by modality. urgent: calling AE titles. fewest: instances that are worth a job."""

    pipelines: dict[str, str]
    urgent: frozenset[str] = frozenset()
    fewest: int = 1


class ByModality:
    """`pipeline-<modality>`, `urgent` (AE titles with commas between), `fewest`, `timeout_s`, `group_by`."""

    name = "by-modality"

    def validate(self, ae_title: str, settings: Mapping[str, str]) -> Settings:
        """Texts become what they mean; whatever is wrong is named."""
        values: dict[str, object] = {key: text for key, text in settings.items() if not key.startswith(PIPELINE)}
        values["pipelines"] = {
            key.removeprefix(PIPELINE): text for key, text in settings.items() if key.startswith(PIPELINE)
        }
        if "urgent" in settings:
            values["urgent"] = frozenset(title.strip() for title in settings["urgent"].split(","))
        try:
            return Settings.model_validate(values)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise SettingsError(f"AE title {ae_title}: {faults}") from None

    def plan(self, settings: Settings, group: Group, instances: Sequence[Instance]) -> list[Plan]:
        """A job for each modality that has a pipeline, and enough instances."""
        counts = Counter(one.attributes.get("Modality", "") for one in instances)
        priority = JobPriority.IMMEDIATE if group.calling_ae in settings.urgent else settings.priority
        return [
            Plan(label=modality.lower(), pipeline=pipeline, priority=priority)
            for modality, pipeline in settings.pipelines.items()
            if counts[modality] >= settings.fewest
        ]
