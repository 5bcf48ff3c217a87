"""P02: every `api-version` is one that we know, and no part is newer than its pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.grammar import CLARA_ORCHESTRATOR_SINCE, VERSIONS, is_before
from clara_flow.flows.definition.node import Text
from clara_flow.flows.definition.problem import Problem, Severity, Vocabulary, listed, problem_at, shown
from clara_flow.flows.definition.syntax import Unit, known_version
from clara_flow.flows.definition.tree import Tree

CODE = "P02"


def check(tree: Tree) -> Iterator[Problem]:
    """Unknown versions, parts newer than the pipeline; warns of what ran on the Argo orchestrator."""
    pipeline, vocabulary = tree.pipeline, Vocabulary(VERSIONS)
    yield from _unknown(pipeline.api_version, vocabulary)
    version = pipeline.version
    if pipeline.api_version is not None and is_before(version, CLARA_ORCHESTRATOR_SINCE):
        message = (
            f"api-version {version} was made for the Argo orchestrator; the pipeline runs on clara-flow's own engine"
        )
        yield problem_at(pipeline.api_version, message, CODE, Severity.WARNING)
    if pipeline.orchestrator is not None and pipeline.orchestrator.value.casefold() == "argo":
        message = "Argo is not used; the pipeline runs on clara-flow's own engine"
        yield problem_at(pipeline.orchestrator, message, CODE, Severity.WARNING)
    for operator in tree.operators:
        units: tuple[Unit, ...] = (operator, *operator.services)
        for part in units:
            yield from _unknown(part.api_version, vocabulary)
            own = known_version(part.api_version)
            if part.api_version is not None and own is not None and is_before(version, own):
                message = f"api-version {own} is newer than the pipeline's {version}; raise the pipeline's api-version"
                yield problem_at(part.api_version, message, CODE)


def _unknown(text: Text | None, vocabulary: Vocabulary) -> Iterator[Problem]:
    if text is not None and not text.is_open and text.value not in VERSIONS:
        hint = vocabulary.hint(text.value)
        message = f"api-version {shown(text.value)} is not known; possible are {listed(VERSIONS)}{hint}"
        yield problem_at(text, message, CODE)
