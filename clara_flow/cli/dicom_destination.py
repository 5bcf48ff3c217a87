"""`clara-flow dicom destination`: where results go, and whether that works."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from clara_flow.cli.completion import names_of
from clara_flow.cli.dicom_rows import Json, Outcome, Replace, facts_of, maker, merged, print_json, put
from clara_flow.cli.records import DataDir, records
from clara_flow.cli.tables import print_table

if TYPE_CHECKING:
    import sqlalchemy as sa

    from clara_flow.records.dicom_models import Destination
    from clara_flow.services.dicom.probe import Step

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

LOOKED_AT = 100

Name = Annotated[
    str, typer.Argument(help="Name of the destination, in any case.", autocompletion=names_of("list_destinations"))
]


@app.callback()
def destination() -> None:
    """Where results may go: DICOM nodes and DICOMweb servers.

    Example: clara-flow dicom destination add PACS --aetitle ORTHANC --host 127.0.0.1 --port 4242
    """


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What pipelines call it.")],
    ae_title: Annotated[str | None, typer.Option("--aetitle", help="Its AE title.")] = None,
    host: Annotated[str | None, typer.Option(help="Its IP address or host name.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port.")] = None,
    stow: Annotated[
        str | None,
        typer.Option(metavar="URL", help="DICOMweb root of a STOW-RS server, instead of AE title, host and port."),
    ] = None,
    tls: Annotated[
        bool | None, typer.Option("--tls/--no-tls", help="Whether TLS is spoken with it.", show_default=False)
    ] = None,
    calling: Annotated[
        str | None, typer.Option(help="How we call ourselves there. dicom_scu_ae_title if absent.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="Deliveries at once. 2 if absent.")] = None,
    commitment: Annotated[
        bool | None,
        typer.Option(
            "--commitment/--no-commitment",
            help="Whether an instance counts only when storage commitment confirms it.",
            show_default=False,
        ),
    ] = None,
    deidentify: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="basic or basic-keep-dates. Off if absent.")
    ] = None,
    credentials: Annotated[
        str | None,
        typer.Option(help="Variable of the environment, or Prefect block, with `user:password` or a bearer token."),
    ] = None,
    replace: Replace = False,
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Add a destination, or change one with --replace. What waits for it is tried at once.

    Nothing happens when it is there already and has all that is given. What is not given stays as it is; "" takes a
    text away.

    \b
    Examples: clara-flow dicom destination add PACS --aetitle ORTHANC --host 127.0.0.1 --port 4242
              clara-flow dicom destination add PACS --port 11112 --replace
              clara-flow dicom destination add ARCHIVE --aetitle ARC --host 10.1.2.3 --port 2762 --tls --commitment
              clara-flow dicom destination add CLOUD --stow https://pacs.example/dicom-web --credentials CLOUD_LOGIN
    """
    from clara_flow.errors import SettingsError
    from clara_flow.records import deliveries, dicom_config
    from clara_flow.records.dicom_models import DeliveryState, Destination, DestinationKind
    from clara_flow.services.dicom.config_check import check_destination

    node = {"ae_title": ae_title, "host": host, "port": port}
    given = {
        "tls": tls,
        "calling_ae": calling,
        "concurrency": concurrency,
        "storage_commitment": commitment,
        "deidentify": deidentify,
        "credentials": credentials,
    }
    with records(data_dir) as engine:
        now = _present(engine, name.strip())
        if now is None and not stow and None in node.values():
            raise SettingsError("a new destination needs --aetitle, --host and --port, or --stow")
        columns = merged(now, {**node, **given, "url": stow, "name": None if now is not None else name})
        if stow and not any(node.values()):
            columns |= {"kind": DestinationKind.STOW, "ae_title": "", "host": "", "port": None}
        elif not stow and any(node.values()):
            columns |= {"kind": DestinationKind.DIMSE, "url": ""}
        row = check_destination(Destination(**columns))
        outcome, told = put(
            engine, row, key="name", what="a destination named", now=now,
            add=dicom_config.add_destination, update=dicom_config.update_destination, replace=replace,
        )  # fmt: skip
        if json_:
            print_json(facts_of(dicom_config.get_destination(engine, row.name)))
            return
        failed = deliveries.list_deliveries(engine, state=DeliveryState.FAILED, destination=row.name, limit=LOOKED_AT)
    typer.echo(f"destination {row.name}: {outcome}{f' ({told})' if told else ''}")
    if outcome is not Outcome.SAME:
        typer.echo(f"Try it: clara-flow dicom destination test {row.name}", err=True)
        if not all(delivery.discarded for delivery in failed):
            command = f"clara-flow results retry --failed --destination {row.name}"
            typer.echo(f"Deliveries to it failed before. Send them now: {command}", err=True)


@app.command("list")
def list_(json_: Json = False, data_dir: DataDir = None) -> None:
    """List where results may go.

    Example: clara-flow dicom destination list
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        rows = dicom_config.list_destinations(engine)
    if json_:
        print_json([facts_of(row) for row in rows])
        return
    cells = [
        {
            "name": row.name,
            "where": row.url or f"{row.ae_title} at {row.host}:{row.port}" + (" (TLS)" if row.tls else ""),
            "at once": str(row.concurrency),
            "commitment": "yes" if row.storage_commitment else "-",
            "de-identification": row.deidentify or "-",
            "state": "paused" if row.paused else "sends",
            "made by": maker(row),
        }
        for row in rows
    ]
    print_table(
        cells, "There is no destination: results stay where they are. Add one: clara-flow dicom destination add"
    )


@app.command()
def delete(name: Name, data_dir: DataDir = None) -> None:
    """Delete a destination. Deliveries to it that are not over fail, and can be tried again once it is back.

    Example: clara-flow dicom destination delete PACS
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        row = dicom_config.delete_destination(engine, name)
    typer.echo(f"destination {row.name} is deleted")


@app.command()
def pause(name: Name, data_dir: DataDir = None) -> None:
    """Send nothing more there until `resume`. Deliveries wait.

    Example: clara-flow dicom destination pause PACS
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        row = dicom_config.update_destination(engine, name, paused=True)
    typer.echo(f"destination {row.name} is paused")


@app.command()
def resume(name: Name, data_dir: DataDir = None) -> None:
    """Send there again, after `pause`.

    Example: clara-flow dicom destination resume PACS
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        row = dicom_config.update_destination(engine, name, paused=False)
    typer.echo(f"destination {row.name} sends again")


@app.command("test")
def try_(
    name: Name,
    store: Annotated[bool, typer.Option("--store/--no-store", help="Leave a small synthetic image there.")] = True,
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Try a destination step by step, and say what failed and what to do.

    The steps are its name, a connection, an association, C-ECHO and C-STORE; or name, connection and STOW-RS.
    The synthetic image is always the same one, of the patient CLARA-FLOW-TEST. Exit status: 0 all is well, 1 a step
    failed.

    Example: clara-flow dicom destination test PACS
    """
    from clara_flow.records import dicom_config
    from clara_flow.services.dicom.probe import Caller, probe
    from clara_flow.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    with records(data_dir) as engine:
        row = dicom_config.get_destination(engine, name)
    steps = []
    for step in probe(row, Caller.of(settings, row), store=store):
        steps.append(step)
        if not json_:
            _tell(step)
    if json_:
        print_json([asdict(step) for step in steps])
    if not all(step.ok for step in steps):
        raise typer.Exit(1)


def _tell(step: Step) -> None:
    typer.echo(f"{'ok' if step.ok else 'FAILED':6}  {step.name:11}  {step.detail}")
    if step.remedy:
        typer.echo(f"{'':21}{step.remedy}")


def _present(engine: sa.Engine, name: str) -> Destination | None:
    from clara_flow.records import dicom_config

    rows = dicom_config.list_destinations(engine)
    return next((row for row in rows if row.name.lower() == name.lower()), None)
