"""The built-in processor `retrieve`: its AE title is where archives send what inference requests ask them for (C-MOVE).

Nothing becomes a job of its own. What came is linked into the payloads of the requests that asked for it, and leaves
the spool when nothing more of its study came for `timeout` seconds: also what nobody had asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clara_flow.errors import SettingsError
from clara_flow.records.dicom_models import Group, Instance
from clara_flow.services.dicom.grouping.ae_title import read_timeout
from clara_flow.services.dicom.grouping.processors import Expectation, Plan, ProcessorSettings, near

TIMEOUT = "timeout"


class RetrieveSettings(ProcessorSettings):
    """timeout_s    silence after which a study leaves the spool. No number of instances makes that sooner."""

    timeout_s: float = 600.0
    expect: tuple[Expectation, ...] = ()


class RetrieveProcessor:
    """See this module."""

    name = "retrieve"

    def validate(self, ae_title: str, settings: Mapping[str, str]) -> RetrieveSettings:
        """Raises SettingsError that names every key that is wrong or unknown."""
        problems: list[str] = []
        values: dict[str, Any] = {}
        for key, text in sorted(settings.items()):
            if key != TIMEOUT:
                problems.append(f"{key}: there is no such setting{near(key, [TIMEOUT]) or f'; it takes {TIMEOUT}'}")
                continue
            try:
                values["timeout_s"] = read_timeout(text)
            except ValueError as error:
                problems.append(f"{key}: {error}")
        if problems:
            raise SettingsError(f"AE title {ae_title}: {'; '.join(problems)}", problems=tuple(problems))
        return RetrieveSettings(**values)

    def plan(self, settings: RetrieveSettings, group: Group, instances: Sequence[Instance]) -> list[Plan]:
        """None, ever."""
        del settings, group, instances
        return []
