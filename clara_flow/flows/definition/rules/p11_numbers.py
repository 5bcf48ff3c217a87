"""P11: amounts are whole numbers in their range: `requests`, `timeout`, `retries`, `fastio`."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.grammar import NumberShape, Part, keys_of
from clara_flow.flows.definition.node import Text
from clara_flow.flows.definition.problem import Problem, problem_at, shown
from clara_flow.flows.definition.syntax import AMOUNT, Requests
from clara_flow.flows.definition.tree import Tree

CODE = "P11"


def check(tree: Tree) -> Iterator[Problem]:
    """Every number of the pipeline, its operators and their services, but shapes (P09) and ports (P12)."""
    yield from _check_numbers(tree.pipeline)
    for operator in tree.operators:
        yield from _check_numbers(operator)
        for part in (operator.requests, *(service.requests for service in operator.services)):
            if part is not None:
                yield from _check_numbers(part)
                yield from _check_gpu(part)


def _check_gpu(requests: Requests) -> Iterator[Problem]:
    """Devices of its own, or a share of one: not both."""
    amounts = [AMOUNT.parse(text) if text else 0 for text in (requests.gpu, requests.gpu_memory)]
    if all(amounts) and requests.gpu_memory is not None:
        message = "`gpu-memory` asks for a share of one GPU and `gpu` for whole ones; only one of them is possible"
        yield problem_at(requests.gpu_memory, message, CODE)


def _check_numbers(part: Part) -> Iterator[Problem]:
    for name, (attribute, key) in keys_of(type(part)).items():
        if not isinstance(key.shape, NumberShape):
            continue
        text = getattr(part, attribute)
        if isinstance(text, Text) and not text.is_open and key.shape.parse(text) is None:
            low, high = key.shape.minimum, key.shape.maximum
            message = f"`{name}` is {shown(text.value)}; a whole number from {low} to {high} is possible"
            yield problem_at(text, message, CODE)
