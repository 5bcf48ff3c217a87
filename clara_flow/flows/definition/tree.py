"""The whole definition, imports put in: what the rules read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from clara_flow.flows.definition.node import Mapping
from clara_flow.flows.definition.problem import shown
from clara_flow.flows.definition.scope import Document
from clara_flow.flows.definition.syntax import Input, Operator, Output, Pipeline


@dataclass(frozen=True, slots=True)
class Site:
    """What this installation has and allows; None where it is not known or not limited.

    models      names of the models in the repository.
    images      patterns of the images that may run (`clara/*`, `nvcr.io/*`), matched as in a shell.
    """

    models: frozenset[str] | None = None
    images: tuple[str, ...] | None = None


@dataclass(eq=False)
class Tree:
    """A definition as typed parts.

    documents   the main file first, then each use of an imported one.
    imports     the maps that hold an `import`, as they were written.
    """

    pipeline: Pipeline
    documents: list[Document]
    imports: list[Mapping] = field(default_factory=list)
    site: Site = Site()

    @property
    def operators(self) -> tuple[Operator, ...]:
        """In the file's order."""
        return self.pipeline.operators

    @cached_property
    def by_name(self) -> dict[str, Operator]:
        """Operators by their name without case; of several with one name the first."""
        found: dict[str, Operator] = {}
        for operator in self.operators:
            if operator.name is not None:
                found.setdefault(operator.name.value.casefold(), operator)
        return found

    @cached_property
    def has_unknown_names(self) -> bool:
        """Whether some operator's name cannot be known, so that a name that is not found may be right."""
        return any(o.name is None or o.name.is_open for o in self.operators)

    def upstream_of(self, entry: Input) -> Operator | None:
        """The operator that an input reads from; None for the payload and for names that do not exist."""
        return self.by_name.get(entry.upstream.value.casefold()) if entry.upstream is not None else None

    @cached_property
    def _outputs(self) -> dict[tuple[int, str], Output]:
        found: dict[tuple[int, str], Output] = {}
        for operator in self.operators:
            for output in operator.outputs:
                found.setdefault((id(operator), output.name.value.casefold() if output.name else ""), output)
        return found

    def output_of(self, upstream: Operator, entry: Input) -> Output | None:
        """The output that an input names; without a name the unnamed one, if there is one."""
        return self._outputs.get((id(upstream), entry.name.value.casefold() if entry.name else ""))


def label(operator: Operator) -> str:
    """How messages call an operator."""
    return f"operator {shown(operator.name.value)}" if operator.name is not None else "an operator without a name"
