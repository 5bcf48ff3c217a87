"""Job processors: plug-ins that say how an AE title groups instances, and which jobs a group becomes.

A plug-in is an object, or a class that takes no arguments, of the entry point group `clara_flow.dicom_processors`:

    [project.entry-points."clara_flow.dicom_processors"]
    mine = "my_package.processor:MyProcessor"

Its settings come as a mapping of texts from whoever configures an AE title, and are validated before they are stored.
What is wrong with a plug-in is the trouble of its own AE titles alone. docs/guides/writing-a-job-processor.md is for
its authors.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, field_validator

from clara_flow.errors import SettingsError
from clara_flow.records.dicom_lines import STUDY_TAG, GroupingRule, Late
from clara_flow.records.dicom_models import AeTitle, Group, Instance
from clara_flow.records.state_machine import JobPriority

log = logging.getLogger(__name__)

ENTRY_POINTS = "clara_flow.dicom_processors"
LONGEST_TIMEOUT_S = 7 * 86_400
Expectation = Literal["attributes", "history", "find", "mpps"]


class ProcessorSettings(BaseModel):
    """What the platform asks of every processor's settings; plug-ins add their own.

    group_by        tag of the attribute whose value makes a group, as `parse_tag` takes it; kept as GGGGEEEE.
    timeout_s       silence after which a group is complete.
    late            what becomes of instances that come after that.
    expect          what may tell how many instances a group should have, so that it need not wait.
    mpps_timeout_s  silence after which a group is complete although its modality says that more is to come (`mpps`).
    retry_delay_s   pause before making a job is tried again; None: the setting `dicom_submit_retry_delay_s`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    group_by: str = STUDY_TAG
    timeout_s: float = Field(5.0, ge=0, le=LONGEST_TIMEOUT_S)
    late: Late = Late.NEW
    priority: JobPriority = JobPriority.NORMAL
    expect: tuple[Expectation, ...] = ("attributes",)
    mpps_timeout_s: float = Field(3600.0, ge=0, le=LONGEST_TIMEOUT_S)
    retry_delay_s: float | None = Field(None, ge=0, le=LONGEST_TIMEOUT_S)

    @field_validator("group_by")
    @classmethod
    def _is_a_tag(cls, text: str) -> str:
        return parse_tag(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job that a group shall become.

    label       names it in the group and in the job's name.
    pipeline    id of a registered pipeline, name of a bundled one, or path of a definition.
    """

    label: str
    pipeline: str
    priority: JobPriority = JobPriority.NORMAL
    arguments: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Processor(Protocol):
    """A job processor. `validate` and `plan` are pure: they may be asked at any time and any number of times."""

    @property
    def name(self) -> str:
        """What AE titles name it by."""

    def validate(self, ae_title: str, settings: Mapping[str, str]) -> ProcessorSettings:
        """The settings of an AE title, read. Raises SettingsError that names every wrong or unknown key."""

    def plan(self, settings: Any, group: Group, instances: Sequence[Instance]) -> list[Plan]:
        """The jobs that a complete group becomes, none where nothing shall become of it; labels are unique.

        settings    what `validate` returned. instances: those of the group, each SOP Instance UID once.
        """


@dataclass(frozen=True, slots=True)
class Configured:
    """An AE title with its processor and the settings as that reads them."""

    row: AeTitle
    processor: Processor
    settings: ProcessorSettings

    @property
    def grouping(self) -> GroupingRule:
        """How the records group for it."""
        return GroupingRule(
            group_tag=self.settings.group_by,
            timeout_s=self.settings.timeout_s,
            late=self.settings.late,
            overwrite=self.row.overwrite_same_instance,
        )

    @property
    def source(self) -> str:
        """The metadata `Source` of its jobs, in Clara's words."""
        return f"{self.row.ae_title} ({self.processor.name})"


@dataclass(frozen=True, slots=True)
class Installed:
    """Processors by name; and of plug-ins that cannot be used, by the name of their entry point, why not."""

    processors: Mapping[str, Processor]
    broken: Mapping[str, str]


@cache
def installed() -> Installed:
    """All of them: our own, and the plug-ins'. Looked for once in a process."""
    from clara_flow.services.dicom.grouping.ae_title import AeTitleProcessor
    from clara_flow.services.dicom.grouping.retrieve import RetrieveProcessor

    own: tuple[Processor, ...] = (AeTitleProcessor(), RetrieveProcessor())
    found = {processor.name: processor for processor in own}
    broken: dict[str, str] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            processor = _loaded(point)
            if processor.name in found:
                raise SettingsError(f"there is a processor {processor.name!r} already")
            found[processor.name] = processor
        except Exception as error:  # noqa: BLE001  whatever somebody's package raises
            broken[point.name] = f"the job processor {point.name!r} ({point.value}) cannot be used: {error}"
            log.error("%s", broken[point.name])
    return Installed(found, broken)


def _loaded(point: EntryPoint) -> Processor:
    loaded = point.load()
    processor = loaded() if isinstance(loaded, type) else loaded
    if not isinstance(processor, Processor) or not isinstance(processor.name, str):
        raise SettingsError("it lacks what a processor has: name, validate, plan")
    return processor


def find(name: str) -> Processor:
    """The processor of that name. Raises SettingsError that says why it cannot be used, or lists those there are."""
    known = installed()
    if name in known.processors:
        return known.processors[name]
    if name in known.broken:
        raise SettingsError(known.broken[name])
    raise SettingsError(f"there is no job processor {name!r}; there is {', '.join(sorted(known.processors))}")


def validated(ae_title: str, processor: str, settings: Mapping[str, str]) -> ProcessorSettings:
    """Settings of an AE title as its processor reads them. Raises SettingsError, also where a plug-in breaks."""
    try:
        read = find(processor).validate(ae_title, settings)
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(
            f"AE title {ae_title}: the job processor {processor!r} broke at its settings: {type(error).__name__}"
        ) from error
    if not isinstance(read, ProcessorSettings):
        raise SettingsError(f"the job processor {processor!r} makes no ProcessorSettings of its settings")
    return read


def configured(row: AeTitle) -> Configured:
    """An AE title ready for use. Raises SettingsError."""
    return Configured(row, find(row.processor), validated(row.ae_title, row.processor, row.processor_settings))


def group_tags(rows: Iterable[AeTitle]) -> tuple[str, ...]:
    """The attributes (GGGGEEEE) that listeners must keep digests of, sorted; AE titles that cannot be read add none."""
    tags = set()
    for row in rows:
        try:
            tags.add(configured(row).settings.group_by)
        except SettingsError:
            continue
    return tuple(sorted(tags))


def parse_tag(text: str) -> str:
    """A tag as GGGGEEEE: of `0020,000D`, `(0020,000d)`, `0020000D` or a keyword. Raises ValueError."""
    from pydicom.datadict import tag_for_keyword

    plain = text.strip()
    tag = tag_for_keyword(plain)
    if tag is not None:
        return f"{tag:08X}"
    match = re.fullmatch(r"\(?\s*([0-9A-Fa-f]{4})\s*,?\s*([0-9A-Fa-f]{4})\s*\)?", plain)
    if match is None:
        raise ValueError("is no tag; write 0020,000D or a keyword such as StudyInstanceUID")
    return "".join(match.groups()).upper()


def near(name: str, names: Iterable[str]) -> str:
    """`; did you mean ...?` for a name that there is not, or nothing."""
    hits = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(hits)}?" if hits else ""
