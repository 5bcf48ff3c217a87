"""`clara-flow operators`: list, describe and build the bundled operators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def operators() -> None:
    """List, describe and build the bundled operators.

    Example: clara-flow operators list
    """


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with everything that describe shows.")] = False,
) -> None:
    """Show the bundled operators.

    Example: clara-flow operators list --json
    """
    from clara_flow.infra.images.catalog import bundled

    catalog = bundled()
    if as_json:
        entries = [operator.model_dump(mode="json") for operator in catalog.operators.values()]
        typer.echo(json.dumps(entries, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(
        *(Column("name", no_wrap=True), Column("version", no_wrap=True), "title"),
        *(Column(name, justify="right") for name in ("cpu", "memory MiB", "gpu")),
        box=None,
        pad_edge=False,
    )
    for operator in catalog.operators.values():
        requests = operator.requests
        table.add_row(
            *(operator.name, operator.version, operator.title),
            *(str(requests.cpu), str(requests.memory), str(requests.gpu)),
        )
    Console().print(table)


@app.command()
def describe(name: Annotated[str, typer.Argument(help="Name of the operator, as `list` shows it.")]) -> None:
    """Show what an operator reads, writes and needs, and which image names mean it.

    Example: clara-flow operators describe dicom-reader
    """
    from clara_flow.infra.images.catalog import bundled

    catalog = bundled()
    operator = catalog.get(name)
    typer.echo(f"{operator.name} {operator.version}: {operator.title}\n\n{operator.description}\n")
    for title, ports in (("inputs", operator.inputs), ("outputs", operator.outputs)):
        for port in ports:
            typer.echo(f"{title[:-1]:10} {port.name or '(unnamed)'} at {port.path}, {port.media}: {port.description}")
    for variable in operator.variables:
        default = "required" if variable.default is None else f"default {variable.default!r}"
        typer.echo(f"variable   {variable.name}, {default}: {variable.description}")
    for model in operator.models:
        typer.echo(f"model      {model.name} {model.version}")
    requests = operator.requests
    typer.echo(f"requests   cpu {requests.cpu}, memory {requests.memory} MiB, gpu {requests.gpu}")
    typer.echo(f"packages   {', '.join(operator.requirements) or 'none beyond numpy'}")
    typer.echo(f"process    python -m {operator.module}")
    typer.echo(f"images     {', '.join(catalog.images_of(name))}")


@app.command()
def build(
    names: Annotated[list[str] | None, typer.Argument(help="Operators to build; all when none is named.")] = None,
    base_image: Annotated[
        str | None, typer.Option(help="Image with Python 3.11 or 3.12 and venv. Default: python:3.11-slim.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Tag of the images. Default: the operator's version.")] = None,
    ca_bundle: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Certificates (PEM) of a proxy before the package index; not kept."
        ),
    ] = None,
    network: Annotated[str | None, typer.Option(help="Network of the build, as in `docker build --network`.")] = None,
) -> None:
    """Build the operators' Docker images. What has not changed is not built again.

    The environment's PIP_INDEX_URL and proxy variables are passed on to the build.

    Example: clara-flow operators build dicom-reader dicom-seg-writer
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from clara_flow.infra.images.build import DEFAULT_BASE_IMAGE, ImageBuilder
    from clara_flow.infra.images.catalog import bundled
    from clara_flow.settings import load_settings

    catalog = bundled()
    wanted = [catalog.get(name) for name in names or catalog.operators]
    builder = ImageBuilder(
        base_url=load_settings().docker_base_url,
        base_image=base_image or DEFAULT_BASE_IMAGE,
        ca_bundle=ca_bundle,
        network=network,
    )
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[step]}"), console=Console(stderr=True)) as progress:
        for operator in wanted:
            task = progress.add_task(operator.name, total=None, step="")

            def show(number: int, total: int, step: str, task_id: int = int(task)) -> None:
                progress.update(task_id, completed=number - 1, total=total, step=step[:60])  # type: ignore[arg-type]

            reference = builder.build(operator, tag=tag, on_step=show)
            total = progress.tasks[int(task)].total
            progress.update(task, completed=total, step="")
            progress.console.print(f"built {reference}")
