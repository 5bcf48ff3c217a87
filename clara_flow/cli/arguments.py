"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable

from clara_flow.errors import SettingsError


def parse_arguments(pairs: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUE` texts as a mapping; the value may be empty and may hold `=`. Raises SettingsError."""
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise SettingsError(f"--set takes NAME=VALUE, found {pair!r}")
        arguments[name] = value
    return arguments


PRIORITIES = ("lower", "normal", "higher", "immediate")


def parse_priority(text: str) -> str:
    """A priority as the records spell it. Raises SettingsError naming those that there are."""
    if text.lower() not in PRIORITIES:
        raise SettingsError(f"--priority takes {', '.join(PRIORITIES)}, found {text!r}")
    return text.upper()
