"""`clara-flow dicom source`: who may send."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from clara_flow.cli.completion import names_of
from clara_flow.cli.dicom_rows import Json, Replace, facts_of, maker, merged, print_json, put
from clara_flow.cli.records import DataDir, records
from clara_flow.cli.tables import print_table

if TYPE_CHECKING:
    import sqlalchemy as sa

    from clara_flow.records.dicom_models import SourceNode

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

SECRET = "user_secret"  # noqa: S105  the column's name


@app.callback()
def source() -> None:
    """Who may send: calling AE title and host.

    Example: clara-flow dicom source add MODALITY --host 127.0.0.1
    """


@app.command()
def add(
    ae_title: Annotated[str, typer.Argument(metavar="AETITLE", help="What the sender calls itself.")],
    host: Annotated[str | None, typer.Option(help="Its IP address, network (10.1.0.0/16) or host name.")] = None,
    max_associations: Annotated[
        int | None,
        typer.Option(metavar="N", help="Associations that it may have at once. Absent: as many as there are."),
    ] = None,
    user: Annotated[
        str | None, typer.Option(help='User name that its user identity negotiation must say. "": none any more.')
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the passcode beside it from standard input.")
    ] = False,
    replace: Replace = False,
    json_: Json = False,
    data_dir: DataDir = None,
) -> None:
    """Add a sender, or change one with --replace.

    Nothing happens when it is there already and has all that is given. What is not given stays as it is.

    \b
    Examples: clara-flow dicom source add MODALITY --host 127.0.0.1
              clara-flow dicom source add CT1 --host 10.1.0.0/16 --max-associations 4
              clara-flow dicom source add CT1 --host 10.2.0.0/16 --replace
              clara-flow dicom source add CLINIC --host pacs.clinic.example --user clinic --password-stdin < passcode
    """
    from clara_flow.errors import SettingsError
    from clara_flow.records import dicom_config
    from clara_flow.records.dicom_models import SourceNode
    from clara_flow.services.dicom.config_check import check_source, hashed_secret, is_secret

    password = sys.stdin.readline().rstrip("\r\n") if password_stdin else ""
    if password_stdin and not password:
        raise SettingsError("--password-stdin found nothing on standard input")
    with records(data_dir) as engine:
        now = _present(engine, ae_title.strip())
        if now is None and host is None:
            raise SettingsError("a new source needs --host: its IP address, network or host name")
        if password_stdin and not (user or (user is None and now is not None and now.user_name)):
            raise SettingsError("--password-stdin needs --user beside it")
        secret = None if user != "" else ""  # without a user there is none
        if password:
            is_same = now is not None and is_secret(password, now.user_secret)
            secret = now.user_secret if now is not None and is_same else hashed_secret(password)  # another salt
        given = {
            "ae_title": ae_title,
            "host": host,
            "maximum_associations": max_associations,
            "user_name": user,
            "user_secret": secret,
        }
        row = check_source(SourceNode(**merged(now, given)))
        outcome, told = put(
            engine, row, key="ae_title", what="a source", now=now,
            add=dicom_config.add_source, update=dicom_config.update_source, replace=replace,
        )  # fmt: skip
        if json_:
            print_json(facts_of(dicom_config.get_source(engine, row.ae_title), [SECRET]))
            return
    typer.echo(f"source {row.ae_title}: {outcome}{f' ({told})' if told else ''}")


@app.command("list")
def list_(json_: Json = False, data_dir: DataDir = None) -> None:
    """List who may send.

    Example: clara-flow dicom source list
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        rows = dicom_config.list_sources(engine)
    if json_:
        print_json([facts_of(row, [SECRET]) for row in rows])
        return
    cells = [
        {
            "AE title": row.ae_title,
            "host": row.host,
            "associations": str(row.maximum_associations or "-"),
            "user": row.user_name or "-",
            "passcode": "yes" if row.user_secret else "-",
            "made by": maker(row),
        }
        for row in rows
    ]
    print_table(
        cells,
        "There is no source: nobody may send, unless dicom_reject_unknown_sources is off. "
        "Add one: clara-flow dicom source add",
    )


@app.command()
def delete(
    ae_title: Annotated[
        str,
        typer.Argument(
            metavar="AETITLE",
            help="What the sender calls itself.",
            autocompletion=names_of("list_sources", "ae_title"),
        ),
    ],
    data_dir: DataDir = None,
) -> None:
    """Let a sender send no more. Associations that it has go on.

    Example: clara-flow dicom source delete MODALITY
    """
    from clara_flow.records import dicom_config

    with records(data_dir) as engine:
        row = dicom_config.delete_source(engine, ae_title)
    typer.echo(f"source {row.ae_title} is deleted")


def _present(engine: sa.Engine, ae_title: str) -> SourceNode | None:
    from clara_flow.records import dicom_config

    return next((row for row in dicom_config.list_sources(engine) if row.ae_title == ae_title), None)
