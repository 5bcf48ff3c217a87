"""`clara-flow dicom aetitle`: the AE titles that we are, and the pipelines that run on what is sent to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from clara_flow.cli.dicom_rows import Json, Outcome, Replace, facts_of, print_json, print_table, put, shown_time
from clara_flow.cli.records import DataDir, records

if TYPE_CHECKING:
    import sqlalchemy as sa

    from clara_flow.records.dicom_models import AeTitle

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

Name = Annotated[str, typer.Argument(help="Name of the AE title; the AE title itself where it was given no other.")]
PIPELINE, ARGUMENT = "pipeline-", "argument-"  # settings of the processor `ae-title`


@app.callback()
def aetitle() -> None:
    """The AE titles that studies are sent to, and the pipelines that run on them.

    Example: clara-flow dicom aetitle add BRAIN --pipeline brain-extraction --timeout 2
    """


@app.command()
def add(
    ae_title: Annotated[str, typer.Argument(metavar="AETITLE", help="What senders call: 1 to 16 characters.")],
    pipelines: Annotated[
        list[str] | None,
        typer.Option("--pipeline", "-p", help="Name, file or id of a pipeline; several become several jobs."),
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", help="Seconds of silence after which a study is complete. 5 if absent.")
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Value of a pipeline's parameter.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="TAG", help="Attribute that makes a job's input. 0020,000D (study) if absent.")
    ] = None,
    priority: Annotated[str | None, typer.Option(help="lower, normal, higher or immediate.")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="SOPCLASS", help="SOP class (UID) that is accepted and thrown away.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="An instance that comes again replaces the first one.")
    ] = False,
    require_release: Annotated[
        bool, typer.Option("--require-release", help="Leave out what came by an association that was broken off.")
    ] = False,
    deidentify: Annotated[str, typer.Option(metavar="PROFILE", help="basic or basic-keep-dates. Off if absent.")] = "",
    name: Annotated[str, typer.Option(help="Name for it, where the AE title itself is none.")] = "",
    processor: Annotated[str, typer.Option(help="Job processor, where it is a plug-in's.")] = "ae-title",
    settings: Annotated[
        list[str] | None, typer.Option("--setting", metavar="KEY=VALUE", help="Any other setting of the processor.")
    ] = None,
    replace: Replace = False,
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Add an AE title. Nothing happens when it is there already and equal; --replace changes one that is not.

    Each group of instances (a study, unless --group-by says otherwise) becomes a job of each pipeline.

    \b
    Examples: clara-flow dicom aetitle add BRAIN --pipeline brain-extraction --timeout 2
              clara-flow dicom aetitle add CHEST -p lung.yaml -p nodules.yaml --set DESTINATION=PACS --priority higher
              clara-flow dicom aetitle add PATIENT -p brain-extraction --group-by 0010,0020 --setting late=ignore
    """
    from clara_flow.cli.arguments import parse_arguments
    from clara_flow.records import dicom_config
    from clara_flow.records.dicom_models import AeTitle
    from clara_flow.services.dicom.config_check import check_aetitle

    values = _pairs("--setting", settings)
    given = parse_arguments(arguments or [])
    values |= {f"{ARGUMENT}{key}": value for key, value in given.items()}
    options = {
        "timeout": timeout_s if timeout_s is None else f"{timeout_s:g}",
        "groupBy": group_by,
        "priority": priority,
    }
    values |= {key: str(value) for key, value in options.items() if value is not None}
    with records(data_dir) as engine:
        values |= _pipelines(engine, data_dir, pipelines or [], given)
        row = check_aetitle(
            AeTitle(
                name=name,
                ae_title=ae_title,
                overwrite_same_instance=overwrite,
                ignored_sop_classes=ignore or [],
                processor=processor,
                processor_settings=values,
                require_release=require_release,
                deidentify=deidentify,
            )
        )
        outcome = put(
            engine, row, key="name", what="an AE title named", now=_living(engine, row.name),
            add=dicom_config.add_aetitle, update=dicom_config.update_aetitle, replace=replace,
        )  # fmt: skip
        if json_:
            print_json(facts_of(dicom_config.get_aetitle(engine, row.name)))
            return
    typer.echo(f"AE title {row.name}: {outcome}")
    if outcome is not Outcome.SAME:
        typer.echo("Who may send to it is said by `clara-flow dicom source add`.", err=True)


@app.command("list")
def list_(json_: Json = False, data_dir: DataDir = None) -> None:
    """List our AE titles and their pipelines. One that is deleted is listed until its last group is done.

    Example: clara-flow dicom aetitle list
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        rows = dicom_config.list_aetitles(engine)
    if json_:
        print_json([facts_of(row) for row in rows])
        return
    print_table([_cells(row) for row in rows], "There is no AE title: nothing can be sent. Add one: dicom aetitle add")


@app.command()
def show(name: Name, json_: Json = False, data_dir: DataDir = None) -> None:
    """Show everything about an AE title.

    Example: clara-flow dicom aetitle show BRAIN
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        row = dicom_config.get_aetitle(engine, name)
    if json_:
        print_json(facts_of(row))
        return
    facts = {
        "name": row.name,
        "AE title": row.ae_title,
        "state": _state(row),
        "processor": row.processor,
        **{f"  {key}": value for key, value in sorted(row.processor_settings.items())},
        "ignored SOP classes": ", ".join(row.ignored_sop_classes) or "none",
        "same instance again": "replaces the first" if row.overwrite_same_instance else "is left out",
        "broken associations": "wait to be sent again" if row.require_release else "count",
        "de-identification": row.deidentify or "off",
        "changed": shown_time(row.updated),
    }
    width = max(map(len, facts))
    for heading, value in facts.items():
        typer.echo(f"{heading:{width}}  {value}")


@app.command()
def delete(name: Name, data_dir: DataDir = None) -> None:
    """Delete an AE title: nothing more is taken for it. Studies that are there already still become their jobs.

    Example: clara-flow dicom aetitle delete BRAIN
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        row = dicom_config.delete_aetitle(engine, name)
    typer.echo(f"AE title {row.name} is deleted; what was received for it is still processed")


def _living(engine: sa.Engine, name: str) -> AeTitle | None:
    """Not one that drains: adding brings that back."""
    from clara_flow.records import dicom_config

    return next((row for row in dicom_config.list_aetitles(engine) if row.name == name and not row.draining), None)


def _cells(row: AeTitle) -> dict[str, str]:
    settings = row.processor_settings
    named = [key.removeprefix(PIPELINE) for key in sorted(settings) if key.startswith(PIPELINE)]
    return {
        "name": row.name,
        "AE title": row.ae_title,
        "pipelines": ", ".join(named) or "-",
        "timeout": f"{settings['timeout']} s" if settings.get("timeout") else "-",
        "state": _state(row),
    }


def _state(row: AeTitle) -> str:
    return "deleted, drains" if row.draining else "takes instances"


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    from clara_flow.errors import SettingsError

    pairs = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SettingsError(f"{option} takes KEY=VALUE, found {text!r}")
        pairs[key] = value
    return pairs


def _pipelines(
    engine: sa.Engine, data_dir: Path | None, references: list[str], arguments: dict[str, str]
) -> dict[str, str]:
    """Settings `pipeline-<name of the pipeline>`; each is compiled once now, so that a study does not find it broken.

    Raises SettingsError, InputError, DefinitionInvalid.
    """
    from clara_flow.deployments.pipelines import find_definition
    from clara_flow.deployments.trigger import compile_definition
    from clara_flow.errors import SettingsError
    from clara_flow.records import pipelines
    from clara_flow.settings import load_settings

    found: dict[str, str] = {}
    for reference in references:
        try:
            number = UUID(reference)
        except ValueError:
            path = find_definition(reference)
            label = compile_definition(load_settings(data_dir=data_dir), path, arguments).plan.name
            value = (
                str(path.absolute()) if path == Path(reference) else reference
            )  # a file, or the name of a bundled one
        else:
            label, value = pipelines.get_pipeline(engine, number).name, str(number)
        if f"{PIPELINE}{label}" in found:
            raise SettingsError(f"two pipelines are named {label!r}: give one of them another name in its definition")
        found[f"{PIPELINE}{label}"] = value
    return found
