"""`clara-flow check` and `clara-flow compile`: definitions to problems, plans and drawings."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from clara_flow.flows.definition.problem import Problem
    from clara_flow.plan import Plan

STDIN = "-"
STDIN_SOURCE = "<stdin>"


class Format(StrEnum):
    """What `compile` writes."""

    JSON = "json"
    YAML = "yaml"
    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"


def check(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Definitions: paths, names of bundled ones, or - for stdin.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print all problems as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell infos, and which files are in order.")] = False,
) -> None:
    """Check pipeline definitions without running them.

    Silent when all is well. Each problem is one line, FILE:LINE:COLUMN: MESSAGE [CODE], on standard error; warnings do
    not fail a file. Exit status: 0 no errors, 1 errors, 3 a file cannot be read.

    Example: clara-flow check liver.yaml operators/*.yaml
    """
    from clara_flow.errors import InputError
    from clara_flow.flows.definition.check import check_definition

    status = 0
    reports: list[dict[str, Any]] = []
    for name in files:
        try:
            text, source, folder = _read(name)
        except InputError as error:
            status = error.exit_status
            reports.append({"file": name, "ok": False, "unreadable": str(error), "problems": []})
            if not as_json:
                typer.echo(f"clara-flow: {error}", err=True)
            continue
        checked = check_definition(text, source=source, root=folder)
        if checked.errors:
            status = status or 1
        problems = [problem._asdict() for problem in checked.problems]
        reports.append({"file": source, "ok": not checked.errors, "problems": problems})
        if not as_json:
            _tell(checked.problems, infos=verbose)
            if verbose and not checked.errors:
                typer.echo(f"{source}: ok", err=True)
    if as_json:
        typer.echo(json.dumps(reports, indent=2))
    raise typer.Exit(status)


def compile_(
    file: Annotated[str, typer.Argument(help="Definition: a path, the name of a bundled one, or - for stdin.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; standard output when absent.")
    ] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="The plan as data (json when absent), or a drawing of it.")
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Value of a parameter; may be repeated.")
    ] = None,
    resolve_imports: Annotated[
        bool,
        typer.Option("--resolve-imports", help="Write the definition as one YAML file instead of its plan."),
    ] = False,
) -> None:
    """Compile a pipeline definition to its plan, a drawing, or one resolved definition.

    Warnings go to standard error. Exit status: 0 written, 2 wrong usage, 3 the definition has errors or cannot be read,
    4 the output cannot be written.

    Example: clara-flow compile brain-extraction --format svg -o brain.svg
    """
    from clara_flow.cli.arguments import parse_arguments
    from clara_flow.errors import SettingsError
    from clara_flow.flows.compiler import Defaults, compile_pipeline, to_yaml
    from clara_flow.settings import load_settings

    if resolve_imports and form not in (None, Format.YAML):
        raise SettingsError(f"--resolve-imports writes a definition in YAML; --format {form} is a form of the plan")
    given = parse_arguments(arguments or [])
    settings = load_settings()
    text, source, folder = _read(file)
    result = compile_pipeline(text, source=source, arguments=given, root=folder, defaults=Defaults.of(settings))
    plan = result.require_plan()
    _tell(result.problems, infos=False)
    _write(to_yaml(result.definition) if resolve_imports else _printed(plan, form or Format.JSON), output)


def _read(name: str) -> tuple[bytes, str, Path]:
    """Text, the name for messages, and the folder for imports. Raises InputError."""
    from clara_flow.deployments.pipelines import find_definition, read_definition
    from clara_flow.flows.definition.loader import MAX_BYTES

    if name == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1), STDIN_SOURCE, Path.cwd()
    path = find_definition(name)
    return read_definition(path), str(path), path.parent


def _tell(problems: tuple[Problem, ...], *, infos: bool) -> None:
    from clara_flow.flows.definition.problem import Severity

    for problem in problems:
        if infos or problem.severity is not Severity.INFO:
            typer.echo(str(problem), err=True)


def _printed(plan: Plan, form: Format) -> str:
    from clara_flow.flows import drawing
    from clara_flow.flows.compiler import to_yaml

    match form:
        case Format.JSON:
            return plan.model_dump_json(indent=2) + "\n"
        case Format.YAML:
            return to_yaml(plan.model_dump(mode="json"))
        case Format.MERMAID:
            return drawing.to_mermaid(plan)
        case Format.DOT:
            return drawing.to_dot(plan)
        case Format.SVG:
            return drawing.to_svg(plan)


def _write(text: str, output: Path | None) -> None:
    from clara_flow.errors import StorageError

    if output is None:
        typer.echo(text, nl=not text.endswith("\n"))
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error.strerror}", path=str(output)) from None
