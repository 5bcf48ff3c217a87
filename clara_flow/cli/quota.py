"""`clara-flow quota`: what tenants may hold of the pool."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from clara_flow.cli.records import DataDir, records

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False)

Tenant = Annotated[str, typer.Argument(help="A tenant: calling AE title, API token's name or pipeline's label.")]
OWN, MOST = "Its own share", "At most, always"
COLUMNS = {  # the ledger's name of a resource -> heading
    "gpu": "GPUs",
    "gpu_memory_mib": "GPU MiB",
    "cpu": "cores",
    "memory_mib": "MiB",
    "jobs": "jobs",
    "fastio_mib": "FastIO MiB",
}


@app.callback()
def quota() -> None:
    """Show and set what tenants may hold over the whole pool at one time.

    A tenant has two limits for each resource, and neither is needed: its own share (--gpus 2), beyond which it may
    borrow what others leave unused, and a hard limit (--max-gpus 4), which it never exceeds. A tenant without a quota
    may use everything, with weight 1.

    Example: clara-flow quota set radiology --gpus 2 --max-gpus 4
    """


@app.command("list")
def list_(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False, data_dir: DataDir = None
) -> None:
    """Show every quota: "2 / 4" is a share of 2 of its own and 4 at most, "-" is no limit.

    Example: clara-flow quota list
    """
    from clara_flow.records import quotas

    with records(data_dir) as engine:
        rows = quotas.list_quotas(engine)
    if json_:
        facts = [{"tenant": row.tenant, "weight": row.weight, "nominal": row.nominal, "hard": row.hard} for row in rows]
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    if not rows:
        Console().print("No tenant has a quota: each may use the whole pool.", highlight=False)
        return
    headings = [Column(heading, justify="right", no_wrap=True) for heading in ("weight", *COLUMNS.values())]
    table = Table(Column("tenant", overflow="fold"), *headings, box=None, pad_edge=False)
    for row in rows:
        limits = (f"{row.nominal.get(name, '-')} / {row.hard.get(name, '-')}" for name in COLUMNS)
        table.add_row(Text(row.tenant), f"{row.weight:g}", *(limit.replace("- / -", "-") for limit in limits))
    Console().print(table, highlight=False)


@app.command("set")
def set_(
    tenant: Tenant,
    gpus: Annotated[str | None, typer.Option(metavar="N", help=f"{OWN} of GPUs.")] = None,
    max_gpus: Annotated[str | None, typer.Option(metavar="N", help=f"{MOST}: GPUs.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(metavar="MIB", help=f"{OWN} of GPU memory (shared GPUs).")] = None,
    max_gpu_memory: Annotated[str | None, typer.Option(metavar="MIB", help=f"{MOST}: GPU memory.")] = None,
    cpu: Annotated[str | None, typer.Option(metavar="N", help=f"{OWN} of cores.")] = None,
    max_cpu: Annotated[str | None, typer.Option(metavar="N", help=f"{MOST}: cores.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="MIB", help=f"{OWN} of memory.")] = None,
    max_memory: Annotated[str | None, typer.Option(metavar="MIB", help=f"{MOST}: memory.")] = None,
    jobs: Annotated[str | None, typer.Option(metavar="N", help=f"{OWN} of running jobs.")] = None,
    max_jobs: Annotated[str | None, typer.Option(metavar="N", help=f"{MOST}: running jobs.")] = None,
    fastio: Annotated[str | None, typer.Option(metavar="MIB", help=f"{OWN} of FastIO memory.")] = None,
    max_fastio: Annotated[str | None, typer.Option(metavar="MIB", help=f"{MOST}: FastIO memory.")] = None,
    weight: Annotated[float | None, typer.Option(help="Share of what all want, relative to other tenants'.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Give a tenant a quota, or change it: what is not named stays as it is. "none" takes a limit away.

    A tenant that is over a new limit keeps what it holds; it gets nothing more until it is below. Jobs that could
    never run under a hard limit are refused when they are created.

    \b
    Examples: clara-flow quota set radiology --gpus 2 --max-gpus 4 --weight 2
              clara-flow quota set research --gpus 0 --max-jobs 10
              clara-flow quota set research --max-jobs none
    """
    from clara_flow.errors import SettingsError
    from clara_flow.records import quotas

    own = {"gpu": ("gpus", gpus), "gpu_memory_mib": ("gpu-memory", gpu_memory), "cpu": ("cpu", cpu),
           "memory_mib": ("memory", memory), "jobs": ("jobs", jobs), "fastio_mib": ("fastio", fastio)}  # fmt: skip
    most = {"gpu": ("max-gpus", max_gpus), "gpu_memory_mib": ("max-gpu-memory", max_gpu_memory),
            "cpu": ("max-cpu", max_cpu), "memory_mib": ("max-memory", max_memory), "jobs": ("max-jobs", max_jobs),
            "fastio_mib": ("max-fastio", max_fastio)}  # fmt: skip
    if weight is not None and not 0 < weight < float("inf"):
        raise SettingsError(f"--weight takes a number above 0, found {weight:g}")
    if weight is None and all(text is None for _, text in (*own.values(), *most.values())):
        raise SettingsError("quota set changes nothing without an option, as --gpus 2 --max-gpus 4")
    with records(data_dir) as engine:
        now = next((row for row in quotas.list_quotas(engine) if row.tenant == tenant), None)
        nominal = _changed(now.nominal if now else {}, own)
        hard = _changed(now.hard if now else {}, most)
        for name in nominal.keys() & hard.keys():
            if nominal[name] > hard[name]:
                raise SettingsError(
                    f"the quota of {tenant!r} would have a share of {nominal[name]} {COLUMNS[name]} of its own, above "
                    f"its hard limit of {hard[name]}: lower --{own[name][0]} or raise --{most[name][0]}"
                )
        if weight is None:
            weight = now.weight if now else 1.0
        quotas.set_quota(engine, tenant, weight=weight, nominal=nominal, hard=hard)
    typer.echo(f"the quota of {tenant} is set")


@app.command()
def delete(tenant: Tenant, data_dir: DataDir = None) -> None:
    """Take a tenant's quota away: it may use everything, with weight 1. Nothing happens when it has none.

    Example: clara-flow quota delete research
    """
    from clara_flow.records import quotas

    with records(data_dir) as engine:
        if all(row.tenant != tenant for row in quotas.list_quotas(engine)):
            typer.echo(f"{tenant} has no quota")
            return
        quotas.delete_quota(engine, tenant)
    typer.echo(f"the quota of {tenant} is deleted")


def _changed(limits: dict[str, int], options: dict[str, tuple[str, str | None]]) -> dict[str, int]:
    """The limits with those options that were given. Raises SettingsError."""
    from clara_flow.errors import SettingsError

    changed = dict(limits)
    for name, (option, text) in options.items():
        if text is None:
            continue
        if text == "none":
            changed.pop(name, None)
        elif text.isascii() and text.isdigit():
            changed[name] = int(text)
        else:
            raise SettingsError(f'--{option} takes a number that is not negative, or "none"; found {text!r}')
    return changed
