"""From the options of `clara-flow dicom aetitle add` to the settings of a job processor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from clara_flow.errors import SettingsError

if TYPE_CHECKING:
    from clara_flow.deployments.trigger import House

PIPELINE, ARGUMENT = "pipeline-", "argument-"  # settings of the processor `ae-title`


def merged_settings(
    house: House,
    kept: Mapping[str, str],
    *,
    pipelines: Iterable[str],
    options: Mapping[str, str | None],
    others: Mapping[str, str],
) -> dict[str, str]:
    """The settings as they shall be: `kept` with what was given put in.

    pipelines   references; where there are some, they are all that there shall be.
    options     setting -> value, None where it was not given.
    others      setting -> value; "" takes it away.

    Raises SettingsError, InputError, DefinitionInvalid for a pipeline that cannot be used.
    """
    settings = dict(kept) | {key: value for key, value in options.items() if value is not None} | dict(others)
    settings = {key: value for key, value in settings.items() if value or key not in others}
    if references := list(pipelines):
        arguments = {
            key.removeprefix(ARGUMENT): value for key, value in settings.items() if key.startswith(ARGUMENT)
        }  # fmt: skip
        settings = {key: value for key, value in settings.items() if not key.startswith(PIPELINE)}
        settings |= _named(house, references, arguments)
    return settings


def pairs(option: str, texts: Iterable[str] | None) -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping. Raises SettingsError."""
    found = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SettingsError(f"{option} takes KEY=VALUE, found {text!r}")
        found[key] = value
    return found


def _named(house: House, references: Iterable[str], arguments: Mapping[str, str]) -> dict[str, str]:
    """Settings `pipeline-<name of the pipeline>`; each is compiled now, so that no study finds it broken."""
    from clara_flow.deployments.pipelines import find_definition
    from clara_flow.deployments.trigger import compile_definition
    from clara_flow.records.pipelines import get_pipeline

    found: dict[str, str] = {}
    for reference in references:
        try:
            number = UUID(reference)
        except ValueError:
            path = find_definition(reference)
            label = compile_definition(house.settings, path, arguments).plan.name
            value = str(path.absolute()) if path == Path(reference) else reference  # a file, or a bundled one's name
        else:
            label, value = get_pipeline(house.engine, number).name, str(number)
        if f"{PIPELINE}{label}" in found:
            raise SettingsError(f"two pipelines are named {label!r}: give one of them another name in its definition")
        found[f"{PIPELINE}{label}"] = value
    return found
