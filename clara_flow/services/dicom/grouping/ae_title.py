"""The built-in processor: an AE title names its pipelines, and each group becomes a job of each of them.

Clara's settings keep their names and meaning (specification of the DICOM adapter, 4.2), but a `timeout` below 5 is
honoured. Ours: `late`, `expect`, `mppsTimeout`, `argument-<NAME>` (a pipeline parameter), `rule-<label>` (when that
pipeline runs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import ConfigDict

from clara_flow.errors import SettingsError
from clara_flow.records.dicom_lines import Late
from clara_flow.records.dicom_models import Group, Instance
from clara_flow.records.state_machine import JobPriority
from clara_flow.services.dicom.grouping.processors import (
    LONGEST_TIMEOUT_S,
    Expectation,
    Plan,
    ProcessorSettings,
    near,
    parse_tag,
)
from clara_flow.services.dicom.grouping.rules import Rule, RuleInvalid, Values, read_rule

PIPELINE, ARGUMENT, RULE = "pipeline-", "argument-", "rule-"


class AeTitleSettings(ProcessorSettings):
    """pipelines, rules: by label, in the order of their labels. arguments: of every pipeline, by parameter."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    pipelines: Mapping[str, str]
    arguments: Mapping[str, str] = {}
    rules: Mapping[str, Rule] = {}


def read_timeout(text: str) -> float:
    """Seconds. Raises ValueError that says what is taken."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= LONGEST_TIMEOUT_S:
        raise ValueError(f"takes a number of seconds from 0 to {LONGEST_TIMEOUT_S}")
    return value


def _delay(text: str) -> float:
    if not (text.strip().isascii() and text.strip().isdigit()) or int(text) > LONGEST_TIMEOUT_S * 1000:
        raise ValueError(f"takes a whole number of milliseconds from 0 to {LONGEST_TIMEOUT_S * 1000}")
    return int(text) / 1000


def _priority(text: str) -> JobPriority:
    try:
        return JobPriority(text.strip().upper())
    except ValueError:
        raise ValueError(f"takes {', '.join(priority.lower() for priority in JobPriority)}") from None


def _late(text: str) -> Late:
    try:
        return Late(text.strip().lower())
    except ValueError:
        raise ValueError(f"takes {', '.join(Late)}") from None


def _expect(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in get_args(Expectation)]:
        raise ValueError(f"knows no {unknown[0]!r}; it takes some of {', '.join(get_args(Expectation))}")
    return names


# key -> (field, how its text is read)
KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "timeout": ("timeout_s", read_timeout),
    "groupBy": ("group_by", parse_tag),
    "priority": ("priority", _priority),
    "jobRetryDelay": ("retry_delay_s", _delay),
    "late": ("late", _late),
    "expect": ("expect", _expect),
    "mppsTimeout": ("mpps_timeout_s", read_timeout),
}
EVERY_KEY = (*KEYS, f"{PIPELINE}<label>", f"{ARGUMENT}<NAME>", f"{RULE}<label>")


class AeTitleProcessor:
    """See this module."""

    name = "ae-title"

    def validate(self, ae_title: str, settings: Mapping[str, str]) -> AeTitleSettings:
        """Raises SettingsError that names every key that is wrong, unknown or missing."""
        problems: list[str] = []
        values: dict[str, Any] = {}
        named: dict[str, dict[str, Any]] = {PIPELINE: {}, ARGUMENT: {}, RULE: {}}
        for key, text in sorted(settings.items()):
            prefix = next((prefix for prefix in named if key.startswith(prefix) and key != prefix), None)
            try:
                if prefix is not None:
                    named[prefix][key.removeprefix(prefix)] = _named(prefix, text)
                elif key in KEYS:
                    field, read = KEYS[key]
                    values[field] = read(text)
                else:
                    hint = near(key, EVERY_KEY) or f"; it takes {', '.join(EVERY_KEY)}"
                    problems.append(f"{key}: there is no such setting{hint}")
            except RuleInvalid as error:
                problems.append(f"{key}, {error}")
            except ValueError as error:
                problems.append(f"{key}: {error}")
        if not named[PIPELINE]:
            problems.append("pipeline-<label>: at least one is needed")
        problems += [
            f"{RULE}{label}: there is no {PIPELINE}{label}{near(label, named[PIPELINE])}"
            for label in sorted(named[RULE].keys() - named[PIPELINE].keys())
        ]
        if problems:
            raise SettingsError(f"AE title {ae_title}: {'; '.join(problems)}", problems=tuple(problems))
        return AeTitleSettings(
            pipelines=named[PIPELINE], arguments=named[ARGUMENT], rules=named[RULE], **values
        )  # fmt: skip

    def plan(self, settings: AeTitleSettings, group: Group, instances: Sequence[Instance]) -> list[Plan]:
        """A job for each pipeline whose rule holds, or that has none."""
        holds = self.which(settings, group, instances)
        return [
            Plan(label=label, pipeline=pipeline, priority=settings.priority, arguments=settings.arguments)
            for label, pipeline in settings.pipelines.items()
            if holds[label]
        ]

    def which(self, settings: AeTitleSettings, group: Group, instances: Sequence[Instance]) -> dict[str, bool]:
        """For each label, whether its rule holds for the group."""
        values = [values_of(group, instance) for instance in instances] if settings.rules else []
        return {
            label: label not in settings.rules or settings.rules[label].holds_for_any(values)
            for label in settings.pipelines
        }


def values_of(group: Group, instance: Instance) -> Values:
    """What rules may ask of an instance."""
    return {
        **instance.attributes,
        "CallingAE": group.calling_ae,
        "CalledAE": group.called_ae,
        "AETitle": group.aetitle,
        "SOPClassUID": instance.sop_class_uid,
    }


def _named(prefix: str, text: str) -> Any:
    if prefix == RULE:
        return read_rule(text)
    if prefix == PIPELINE and not text.strip():
        raise ValueError("names no pipeline")
    return text.strip() if prefix == PIPELINE else text
