"""`clara-flow dicom aetitle`: the AE titles that we are, and the pipelines that run on what is sent to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clara_flow.cli.completion import names_of
from clara_flow.cli.dicom_aetitle_settings import ARGUMENT, PIPELINE, merged_settings, pairs
from clara_flow.cli.dicom_rows import Json, Replace, facts_of, merged, print_json, put, shown_time
from clara_flow.cli.records import DataDir, records
from clara_flow.cli.tables import print_table

if TYPE_CHECKING:
    import sqlalchemy as sa

    from clara_flow.records.dicom_models import AeTitle

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

Name = Annotated[
    str,
    typer.Argument(
        help="Name of the AE title; the AE title itself where it was given no other.",
        autocompletion=names_of("list_aetitles"),
    ),
]


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
        bool | None,
        typer.Option(
            "--overwrite/--no-overwrite",
            help="Whether an instance that comes again replaces the first one. It is left out if absent.",
            show_default=False,
        ),
    ] = None,
    require_release: Annotated[
        bool | None,
        typer.Option(
            "--require-release/--no-require-release",
            help="Whether what came by an association that was broken off waits to be sent again. It counts if absent.",
            show_default=False,
        ),
    ] = None,
    deidentify: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="basic or basic-keep-dates. Off if absent.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name for it, where the AE title itself is none.", show_default=False)] = "",
    processor: Annotated[
        str | None, typer.Option(help="Job processor: a plug-in's, or retrieve (for C-MOVE). ae-title if absent.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--setting", metavar="KEY=VALUE", help="Any other setting of the processor; without VALUE it is taken away."
        ),
    ] = None,
    replace: Replace = False,
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Add an AE title, or change one with --replace.

    Each group of instances (a study, unless --group-by says otherwise) becomes a job of each pipeline. Nothing happens
    when it is there already and has all that is given. What is not given stays as it is; --pipeline names all of them.

    \b
    Examples: clara-flow dicom aetitle add BRAIN --pipeline brain-extraction --timeout 2
              clara-flow dicom aetitle add BRAIN --timeout 10 --replace
              clara-flow dicom aetitle add CHEST -p lung.yaml -p nodules.yaml --set DESTINATION=PACS --priority higher
              clara-flow dicom aetitle add PATIENT -p brain-extraction --group-by 0010,0020 --setting late=ignore
              clara-flow dicom aetitle add RETRIEVE --processor retrieve
    """
    from clara_flow.cli.arguments import parse_arguments
    from clara_flow.deployments.trigger import House
    from clara_flow.infra.images.catalog import installed
    from clara_flow.records import dicom_config
    from clara_flow.records.dicom_models import AeTitle
    from clara_flow.services.dicom.config_check import check_aetitle
    from clara_flow.services.dicom.wanted_destinations import missing_destinations
    from clara_flow.settings import load_settings

    given = parse_arguments(arguments or [])
    options = {
        "timeout": timeout_s if timeout_s is None else f"{timeout_s:g}",
        "groupBy": group_by,
        "priority": priority,
        **{f"{ARGUMENT}{key}": value for key, value in given.items()},
    }
    house_settings = load_settings(data_dir=data_dir)
    with records(data_dir) as engine:
        house = House(settings=house_settings, engine=engine, catalog=installed(house_settings.catalogs))
        now = _living(engine, (name or ae_title).strip())
        columns = merged(
            now,
            {
                "name": name or None,
                "ae_title": ae_title,
                "overwrite_same_instance": overwrite,
                "ignored_sop_classes": None if ignore is None else [text for text in ignore if text],
                "processor": processor,
                "require_release": require_release,
                "deidentify": deidentify,
            },
        )
        same_processor = now is not None and now.processor == columns.get("processor", now.processor)
        columns["processor_settings"] = merged_settings(
            house,
            now.processor_settings if now is not None and same_processor else {},
            pipelines=pipelines or (),
            options=options,
            others=pairs("--setting", settings),
        )
        row = check_aetitle(AeTitle(**({"name": ""} | columns)))
        missing = missing_destinations(house, row)
        outcome, told = put(
            engine, row, key="name", what="an AE title named", now=now,
            add=dicom_config.add_aetitle, update=dicom_config.update_aetitle, replace=replace,
        )  # fmt: skip
        if json_:
            print_json(facts_of(dicom_config.get_aetitle(engine, row.name)))
            return
        nobody_may_send = house.settings.dicom_reject_unknown_sources and not dicom_config.list_sources(engine)
    typer.echo(f"AE title {row.name}: {outcome}{f' ({told})' if told else ''}")
    for name in missing:
        typer.echo(
            f"Its results go to {name}, which is no destination yet. Add it: clara-flow dicom destination add {name} "
            "--aetitle AETITLE --host HOST --port PORT",
            err=True,
        )
    if nobody_may_send:
        typer.echo("Nobody may send yet. Say who may: clara-flow dicom source add AETITLE --host HOST", err=True)


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
    print_table(
        [_cells(row) for row in rows],
        "There is no AE title: nothing can be sent. Add one: clara-flow dicom aetitle add",
    )


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
