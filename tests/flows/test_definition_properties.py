"""What holds for every text and every graph."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from clara_flow.flows.compiler import CompileResult, compile_pipeline, to_yaml
from clara_flow.flows.definition.grammar import (
    VERSIONS,
    NumberShape,
    PairsShape,
    Part,
    PartShape,
    PartsShape,
    Shape,
    TextShape,
    TextsShape,
    keys_of,
)
from clara_flow.flows.definition.problem import Severity
from clara_flow.flows.definition.syntax import Pipeline
from clara_flow.plan import Plan

GOLDEN = Path(__file__).parent / "definition"
TEXTS = [path.read_bytes() for path in sorted(GOLDEN.glob("*/*.yaml")) if path.stat().st_size < 20_000]
WORDS = [
    "${{A}}",
    "${{JOB_ID}}",
    "${{",
    "$(A)",
    "*a",
    "&a ",
    "<<: ",
    "!!str ",
    "- ",
    "? ",
    ": ",
    "{",
    "[",
    "\n---\n",
    "\t",
]


def checked(text: str | bytes, **options: Any) -> CompileResult:
    """Compile, and demand of the outcome what holds for every text."""
    result = compile_pipeline(text, source="any.yaml", **options)
    errors = result.of(Severity.ERROR)
    assert (result.plan is None) == bool(errors)
    assert list(result.problems) == sorted(set(result.problems))
    for problem in result.problems:
        assert problem.line >= 1
        assert problem.column >= 1
        assert len(str(problem).splitlines()) == 1
        assert len(str(problem)) < 1500
    if result.plan is not None:
        assert Plan.model_validate_json(result.plan.model_dump_json()) == result.plan
        again = compile_pipeline(to_yaml(result.definition), source="again.yaml")
        assert again.plan == result.plan, again.problems
    event("plan" if result.plan is not None else f"first error {errors[0].code}")
    return result


@given(st.text() | st.binary())
def test_any_text_gives_problems_or_a_plan(text: str | bytes) -> None:
    checked(text)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A golden file, cut, doubled and spiced at random places."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 60)))
        new = draw(st.sampled_from(WORDS).map(str.encode) | st.binary(max_size=4) | st.just(text[start:end] * 2))
        text = text[:start] + new + text[end:]
    return text


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated())
def test_mutated_definitions_give_problems_or_a_plan(text: bytes) -> None:
    checked(text, root=GOLDEN / "ok")


ODD_TEXT = st.text(max_size=6) | st.sampled_from(["a", "B", "/input", "dicom", "array", "${{A}}", "latest", "0.4.0"])
ODD = st.recursive(
    ODD_TEXT | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ODD_TEXT, inner, max_size=2),
    max_leaves=4,
)
USUAL = {
    "name": ["a", "b", "c", "d", "B"],
    "from": ["a", "b", "A", "d"],
    "path": ["/input", "/output", "/data", "/logs", "/data/x"],
    "image": ["clara/a", "nvcr.io/nvidia/b"],
    "type": ["stream", "stream", "stream", "array", "string", "u8"],
    "element-type": ["dicom", "dicom", "uint8", "float32"],
    "tag": ["latest", "18.04", "${{A}}"],
    "version": ["latest", "1"],
}


def values_of(name: str, shape: Shape) -> st.SearchStrategy[Any]:
    match shape:
        case TextShape(choices, _):
            return st.sampled_from(choices or USUAL.get(name, ["some text"]))
        case NumberShape():
            return st.integers(max(shape.minimum, 0), min(shape.maximum, shape.minimum + 9))
        case TextsShape(number, choices):
            words = st.sampled_from(choices or ["x", "$(A)", "${{JOB_ID}}"])
            return st.lists(st.integers(-1, 3) if number else words, max_size=3)
        case PairsShape() if name == "parameters":
            return st.just({"A": "1"})
        case PairsShape():
            return st.dictionaries(st.sampled_from(["A", "B"]), st.sampled_from(["1", "clara", ""]), max_size=2)
        case PartShape(part):
            return parts_of(part)
        case PartsShape(part):
            return st.lists(parts_of(part), max_size=3)


@cache
def parts_of(part: type[Part]) -> st.SearchStrategy[dict[str, Any]]:
    """Maps with the keys of the language and values of the right kind, now and then something odd."""
    needed, optional = {}, {}
    for name, (_, key) in keys_of(part).items():
        usual = values_of(name, key.shape)
        value = st.integers(0, 200).flatmap(lambda dice, usual=usual: ODD if dice == 0 else usual)
        if name == "parameters" or key.required or key.required_typed or key.required_untyped:
            needed[name] = value
        elif name != "import" and not key.refused:
            optional[name] = value
    return st.fixed_dictionaries(needed, optional=optional)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(parts_of(Pipeline), st.dictionaries(st.sampled_from(["A", "B"]), ODD_TEXT, max_size=1))
def test_random_trees_of_the_language_give_problems_or_a_plan(tree: dict[str, Any], arguments: dict[str, str]) -> None:
    checked(to_yaml(tree), arguments=arguments)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_free_texts_arrive_unchanged(argument: str, variable: str, description: str) -> None:
    assume("${{" not in argument + variable + description)
    tree = {
        "api-version": "0.6.0",
        "name": "free",
        "description": f"x{description}",
        "parameters": {"P": "default"},
        "operators": [
            {
                "name": "a",
                "container": {"image": "clara/a", "command": [f"x{argument}", "${{P}}"]},
                "variables": {"V": f"x{variable}"},
                "input": [{"name": "i", "path": "/i", "type": "stream", "element-type": "x"}],
            }
        ],
    }
    plan = checked(to_yaml(tree), arguments={"P": variable}).require_plan()
    assert plan.description == f"x{description}"
    assert plan.operators[0].container.command == (f"x{argument}", variable)
    assert plan.operators[0].variables == {"V": f"x{variable}"}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    """Operator -> the operators that it reads from; without cycles, in random order."""
    names = [f"o{number}" for number in range(draw(st.integers(1, 12)))]
    reads = {
        name: draw(st.lists(st.sampled_from(names[:number]), unique=True, max_size=3) if number else st.just([]))
        for number, name in enumerate(names)
    }
    return {name: reads[name] for name in draw(st.permutations(names))}


def definition_of(reads: dict[str, list[str]]) -> str:
    operators = [
        {
            "name": name,
            "container": {"image": "clara/a"},
            "input": [{"path": "/payload"}, *({"from": up, "path": f"/in/{up}"} for up in upstreams)],
            "output": [{"path": "/output"}],
        }
        for name, upstreams in reads.items()
    ]
    return to_yaml({"api-version": "0.4.0", "name": "graph", "operators": operators})


@settings(deadline=None)
@given(graphs())
def test_random_graphs_are_planned_in_order(reads: dict[str, list[str]]) -> None:
    plan = checked(definition_of(reads)).require_plan()
    place = {operator.name: index for index, operator in enumerate(plan.operators)}
    assert set(place) == set(reads)
    assert {(edge.source, edge.target) for edge in plan.edges} == {
        *(("", name) for name in reads),
        *((upstream, name) for name, upstreams in reads.items() for upstream in upstreams),
    }
    assert all(place[edge.source] < place[edge.target] for edge in plan.edges if edge.source)
    written = {name: index for index, name in enumerate(reads)}
    for before, after in zip(plan.operators, plan.operators[1:], strict=False):
        # whoever comes later although it stands earlier in the file had to wait for its neighbour
        assert written[before.name] < written[after.name] or before.name in reads[after.name]


@settings(deadline=None)
@given(graphs(), st.data())
def test_cycles_are_always_found_and_real(reads: dict[str, list[str]], data: st.DataObject) -> None:
    ring = data.draw(st.lists(st.sampled_from(sorted(reads)), min_size=2, unique=True)) if len(reads) > 1 else []
    assume(ring)
    for upstream, name in zip(ring, [*ring[1:], ring[0]], strict=True):
        reads[name] = list(dict.fromkeys([*reads[name], upstream]))
    result = checked(definition_of(reads))
    cycles = [problem for problem in result.problems if problem.code == "P07"]
    assert cycles
    for problem in cycles:
        steps = problem.message.partition(": ")[2].split(" -> ")
        assert steps[0] == steps[-1]
        assert all(upstream in reads[name] for upstream, name in itertools.pairwise(steps))


@given(st.sampled_from(VERSIONS), st.sampled_from(VERSIONS))
def test_an_operator_may_be_as_old_as_it_likes_but_not_newer(pipeline: str, own: str) -> None:
    entry = {"name": "i", "path": "/i", "type": "stream", "element-type": "x"}
    operator = {"name": "a", "api-version": own, "container": {"image": "clara/a"}, "input": [entry]}
    result = checked(to_yaml({"api-version": pipeline, "name": "v", "operators": [operator]}))
    assert (result.plan is None) == (VERSIONS.index(own) > VERSIONS.index(pipeline))
