"""`clara-flow gpu`: the pool's machines and GPUs, who holds them, and taking them out of service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clara_flow.cli.records import DataDir, records

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from clara_flow.infra.gpu.model import Gpu
    from clara_flow.infra.gpu.status import Holder, NodeStatus

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

Reference = Annotated[
    str, typer.Argument(metavar="NODE|GPU", help="Name of a machine, or the beginning of a GPU's UUID.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
STYLES = {"ok": "green", "degraded": "yellow", "failed": "red"}


@app.callback()
def gpu() -> None:
    """Show the pool's GPUs and who holds them; take them out of service and back.

    Example: clara-flow gpu status
    """


@app.command()
def status(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, with every fact.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show every machine of the pool: what it has, what is leased, and for each GPU its health and who holds it.

    Where no platform runs it shows this machine alone. Memory is in MiB; "foreign" is held by programs that are not
    operators of the platform. A device whose line says failed or drained gets nothing new.

    Example: clara-flow gpu status --json
    """
    from rich.console import Console

    from clara_flow.infra.gpu.status import pool_status, this_machine
    from clara_flow.records.database import DatabaseAway

    in_pool = True
    try:
        with records(data_dir) as engine:
            machines = pool_status(engine)
    except DatabaseAway:
        machines, in_pool = [this_machine()], False
        typer.echo("No pool answers (`clara-flow status` says more): this is this machine alone.", err=True)
    if json_:
        typer.echo(json.dumps({"pool": in_pool, "nodes": [machine.as_json() for machine in machines]}, indent=2))
        return
    console = Console()
    if not machines:
        console.print("No machine has joined the pool yet.")
    for machine in machines:
        _show(console, machine, in_pool)


@app.command()
def drain(reference: Reference, yes: Yes = False, data_dir: DataDir = None) -> None:
    """Put nothing new on a machine or a GPU. What runs there may end; `gpu status` shows when it is free.

    It lasts until `gpu undrain`, also over restarts. A card's UUID is for all of its MIG instances. Exit status: 0 it
    is out of service, or was already; 1 you said no; 3 there is no such machine or GPU.

    \b
    Examples: clara-flow gpu drain gpu-1
              clara-flow gpu drain GPU-3b1c2d4e --yes
    """
    _set(reference, drained=True, yes=yes, data_dir=data_dir)


@app.command()
def undrain(reference: Reference, data_dir: DataDir = None) -> None:
    """Let a machine or a GPU take work again. Nothing happens when it was not drained.

    A machine's name is for the machine alone: GPUs of it that were drained by themselves stay so.

    Example: clara-flow gpu undrain gpu-1
    """
    _set(reference, drained=False, yes=True, data_dir=data_dir)


def _set(reference: str, *, drained: bool, yes: bool, data_dir: Path | None) -> None:
    from clara_flow.infra.gpu.status import find, pool_status
    from clara_flow.records import nodes

    with records(data_dir) as engine:
        machine, device = find(pool_status(engine), reference)
        if device is None:
            thing, was_drained = f"the machine {machine.name}", machine.drained
            running = machine.held.get("jobs", 0)
            drained_with = ""
        else:
            thing, was_drained = f"the GPU {device.uuid} of {machine.name}", device.uuid in machine.drained_devices
            running = len({holder.job_id for holder in machine.holders_on(device)})
            drained_with = "machine" if machine.drained else "card" if device.card in machine.drained_devices else ""
        load = f"{running} {'job runs' if running == 1 else 'jobs run'} there and may end."
        if drained and was_drained:
            typer.echo(f"{thing} is out of service already; {load}")
            return
        if drained and not yes:
            typer.confirm(f"Take {thing} out of service? {load}", abort=True, err=True)
        if was_drained is not drained:
            nodes.set_drained(engine, machine.name if device is None else device.uuid, drained)
    if drained:
        typer.echo(f"{thing} is out of service; {load}")
    else:
        typer.echo(f"{thing} is {f'out of service with its {drained_with}' if drained_with else 'in service'}")


def _show(console: Console, machine: NodeStatus, in_pool: bool) -> None:
    """A line about the machine, a table of its devices."""
    from rich.table import Column, Table
    from rich.text import Text

    from clara_flow.infra.gpu.status import short

    has, held = machine.inventory, machine.held
    sizes = [("cores", has.cpu, held.get("cpu", 0)), ("MiB memory", has.memory_mib, held.get("memory_mib", 0)),
             ("MiB FastIO", has.fastio_mib, held.get("fastio_mib", 0))]  # fmt: skip
    if in_pool:
        sizes.insert(0, ("jobs", machine.jobs, held.get("jobs", 0)))
    facts = ", ".join(f"{used} of {size} {unit}" if in_pool else f"{size} {unit}" for unit, size, used in sizes)
    state = " drained" if machine.drained else ""
    state += " silent: its worker was not heard of lately" if machine.is_silent else ""
    head = Text.assemble((machine.name, "bold"), (state, "yellow"), f"  {facts}")
    console.print(head, soft_wrap=True, highlight=False)
    if not has.gpus:
        console.print("  no GPU", highlight=False)
        return
    table = Table(
        *(Column("  GPU", no_wrap=True), Column("model")),
        *(Column(name, justify="right", no_wrap=True) for name in ("memory", "foreign", "°C")),
        *(Column("state", overflow="fold"), Column("held by", overflow="fold")),
        box=None,
        pad_edge=False,
    )
    uuids = [gpu.uuid for gpu in has.gpus]
    for gpu in has.gpus:
        holders = "divided" if gpu.mig else "\n".join(map(_named, machine.holders.get(gpu.uuid, ()))) or "-"
        temperature = "-" if gpu.card or gpu.temperature_c is None else str(gpu.temperature_c)
        table.add_row(
            Text(f"  {'  ' if gpu.card else ''}{short(gpu.uuid, uuids)}"),
            Text(gpu.name),
            *(str(gpu.memory_mib), str(gpu.foreign_mib or "-"), temperature),
            _state(machine, gpu),
            Text(holders),
        )
    console.print(table, highlight=False)


def _state(machine: NodeStatus, gpu: Gpu) -> Text:
    from rich.text import Text

    drained = Text.assemble(("drained", "yellow"), ", ") if machine.is_drained(gpu) else Text()
    return Text.assemble(drained, (gpu.health, STYLES[gpu.health]), f": {gpu.reason}" if gpu.reason else "")


def _named(holder: Holder) -> str:
    share = "" if holder.gpu_memory_mib is None else f", {holder.gpu_memory_mib} MiB"
    step = f" {holder.operator}" if holder.operator else ""
    return f"job {str(holder.job_id)[:8]} {holder.job_name}{step} ({holder.tenant}{share})"
