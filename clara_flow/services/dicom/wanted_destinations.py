"""Which destinations the pipelines of an AE title send their results to, as far as their definitions tell."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from clara_flow.deployments.trigger import House
from clara_flow.plan import Plan
from clara_flow.records import dicom_config
from clara_flow.records.delivery_registration import destinations_in
from clara_flow.records.dicom_models import AeTitle
from clara_flow.services.dicom.grouping.pipelines import Pipelines
from clara_flow.services.dicom.grouping.processors import configured

AGENT, DATA = "--agent", "--data"  # of the operator register-results


def missing_destinations(house: House, row: AeTitle) -> list[str]:
    """Names in the definitions of its pipelines that are no destination, in their order.

    Every pipeline is compiled with the AE title's arguments. Raises SettingsError, InputError, DefinitionInvalid for
    what cannot become jobs, ServiceError.
    """
    settings = configured(row).settings
    resolve = Pipelines(house).resolve
    arguments = getattr(settings, "arguments", {})
    agents = house.settings.dicom_scu_ae_title, house.settings.dicom_stow_agent
    named: dict[str, str] = {}
    for reference in getattr(settings, "pipelines", {}).values():
        for name in destinations_of(resolve(reference, arguments).plan, agents):
            named.setdefault(name.casefold(), name)
    known = {destination.name.casefold() for destination in dicom_config.list_destinations(house.engine)}
    return [name for key, name in named.items() if key not in known]


def destinations_of(plan: Plan, agents: Collection[str]) -> list[str]:
    """The destinations that operators of a plan register results for, with one of these agents; any case."""
    ours = {agent.casefold() for agent in agents}
    commands = (operator.container.command for operator in plan.operators)
    return [
        name
        for command in commands
        if _value(command, AGENT).casefold() in ours
        for name in _names(_value(command, DATA))
    ]


def _value(command: Sequence[str], option: str) -> str:
    """Of `--option value` or `--option=value`; "" without it."""
    for word, following in pairwise([*command, ""]):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return ""


def _names(data: str) -> list[str]:
    """Published definitions escape the quotes."""
    return destinations_in(data) or destinations_in(data.replace('\\"', '"'))
