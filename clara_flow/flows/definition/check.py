"""From text to the checked tree: load, put in parameters and imports, apply every rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from clara_flow.flows.definition.imports import expand
from clara_flow.flows.definition.loader import load
from clara_flow.flows.definition.problem import Problem, Severity
from clara_flow.flows.definition.rules import RULES
from clara_flow.flows.definition.tree import Site, Tree


class Checked(NamedTuple):
    """A tree and all that is to say about it, sorted by place. No tree: the text could not be read at all."""

    tree: Tree | None
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """What forbids a plan."""
        return tuple(problem for problem in self.problems if problem.severity is Severity.ERROR)


def check_definition(
    text: str | bytes,
    *,
    source: str,
    arguments: Mapping[str, str] | None = None,
    root: Path | None = None,
    site: Site | None = None,
) -> Checked:
    """Check a pipeline definition by every rule. Raises nothing, whatever the text holds.

    source      the file as the user named it; problems and imports use it.
    arguments   values for the definition's parameters.
    root        the folder that the file stands in, from which imports are read; None: imports are problems.
    site        what this installation has and allows, for rule P14.
    """
    loaded, problems = load(text, source)
    if loaded is None:
        return Checked(None, tuple(sorted(set(problems))))
    tree, import_problems = expand(loaded, arguments or {}, root, site or Site())
    problems += import_problems
    for rule in RULES:
        problems += rule(tree)
    return Checked(tree, tuple(sorted(set(problems))))
