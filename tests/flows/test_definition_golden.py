"""The golden folder: `ok/` compiles in silence, `warn/` and `err/` say exactly what their `.out` says.

After a wanted change of messages: `pytest tests/flows --update-golden`, then review the difference as text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from clara_flow.flows.compiler import CompileResult, compile_pipeline, to_yaml
from clara_flow.flows.definition.grammar import VERSIONS
from clara_flow.flows.definition.problem import Severity
from clara_flow.flows.definition.rules import RULES
from clara_flow.flows.definition.schema import json_schema, schema_text
from clara_flow.plan import Plan

GOLDEN = Path(__file__).parent / "definition"
OK = sorted((GOLDEN / "ok").glob("*.yaml"))
WARN = sorted((GOLDEN / "warn").glob("*.yaml"))
ERR = sorted((GOLDEN / "err").glob("*.yaml"))
PUBLISHED_SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "pipeline-definition.schema.json"


class PlainLoader(yaml.SafeLoader):
    """Reads YAML as an editor does: without dates (YAML 1.2 has none)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def compiled(path: Path) -> CompileResult:
    return compile_pipeline(path.read_bytes(), source=path.name, root=path.parent)


def name_of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", OK, ids=name_of)
def test_ok_files_compile_in_silence(path: Path) -> None:
    result = compiled(path)
    assert [str(problem) for problem in result.problems if problem.severity is not Severity.INFO] == []
    assert result.plan is not None


@pytest.mark.parametrize("path", [*WARN, *ERR], ids=name_of)
def test_problems_are_told_exactly(path: Path, request: pytest.FixtureRequest) -> None:
    result = compiled(path)
    told = "".join(f"{problem}\n" for problem in result.problems)
    golden = path.with_suffix(".out")
    if request.config.getoption("--update-golden", default=False):
        golden.write_text(told, encoding="utf-8")
    assert told == golden.read_text(encoding="utf-8")
    assert (result.plan is None) == (path in ERR)


def test_every_code_has_a_golden_file() -> None:
    told = "".join(path.with_suffix(".out").read_text(encoding="utf-8") for path in [*WARN, *ERR])
    missing = [code for number in range(1, 18) if f"[{(code := f'P{number:02}')}]" not in told]
    assert missing == []


def test_one_rule_one_file_in_order() -> None:
    modules = [rule.__module__.rpartition(".")[2] for rule in RULES]
    assert [name[:3] for name in modules] == [f"p{number:02}" for number in range(2, 17)]


def test_every_version_has_a_file_that_compiles() -> None:
    plans = [compiled(path).plan for path in [*OK, *WARN]]
    assert {plan.api_version for plan in plans if plan is not None} == set(VERSIONS)


@pytest.mark.parametrize("path", [*OK, *WARN], ids=name_of)
def test_the_printed_plan_is_the_plan(path: Path) -> None:
    plan = compiled(path).require_plan()
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert Plan.model_validate(yaml.safe_load(to_yaml(plan.model_dump(mode="json")))) == plan


@pytest.mark.parametrize("path", [*OK, *WARN], ids=name_of)
def test_the_resolved_definition_compiles_to_the_same_plan(path: Path) -> None:
    first = compiled(path)
    again = compile_pipeline(to_yaml(first.definition), source=path.name)  # no folder: nothing is left to import
    assert again.plan == first.plan
    assert again.definition == first.definition


@pytest.mark.parametrize("path", OK, ids=name_of)
def test_ok_files_fit_the_schema(path: Path) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.load(path.read_text("utf-8"), PlainLoader))  # noqa: S506


@pytest.mark.parametrize(
    ("file", "kind"),
    [("dicom-reader", "Operator"), ("renamed", "Operator"), ("services/triton", "Service")],
)
def test_files_of_operators_and_services_fit_their_part_of_the_schema(file: str, kind: str) -> None:
    content = yaml.safe_load((GOLDEN / "ok" / "parts" / f"{file}.yaml").read_text("utf-8"))
    schema = json_schema()
    part = {"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"}
    assert list(jsonschema.Draft202012Validator(part).iter_errors(content)) == []


def faults(definition: dict[str, Any]) -> set[str]:
    errors = jsonschema.Draft202012Validator(json_schema()).iter_errors(definition)
    return {error.json_path for error in errors}


def test_the_schema_refuses_what_the_checker_refuses() -> None:
    operator: dict[str, Any] = {"name": "a", "container": {"image": "clara/a"}, "input": [{"path": "/input"}]}
    untyped: dict[str, Any] = {"api-version": "0.4.0", "name": "x", "operators": [operator]}
    assert faults(untyped) == set()
    assert faults(untyped | {"api-version": "0.6.0"}) == {"$.operators[0].input[0]"}  # name and type are missing
    assert faults(untyped | {"colour": "blue"}) == {"$"}
    assert faults(untyped | {"operators": []}) == {"$.operators"}
    assert faults(untyped | {"timeout": 0}) == {"$.timeout"}
    assert faults(untyped | {"operators": [{"name": "no-container"}]}) == {"$.operators[0]"}


def test_the_published_schema_is_valid_and_up_to_date() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json.loads(schema_text()) == json_schema()
    assert PUBLISHED_SCHEMA.read_text("utf-8") == schema_text(), (
        "run: python -m clara_flow.flows.definition.schema > docs/reference/pipeline-definition.schema.json"
    )
