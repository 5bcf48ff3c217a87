"""`clara-flow up`, `down` and `status`."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clara_flow.settings import Settings, load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from clara_flow.services.state_file import PlatformState

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Data folder. Default: CLARA_FLOW_DATA_DIR.", show_default=False)
]
NOT_RUNNING = 4


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything answers; it runs on.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Start the platform: PostgreSQL and the Prefect server. Ctrl-C stops it, unless it was detached.

    A platform that runs already is found, whoever started it. Exit status: 0 it runs (or ran until Ctrl-C); 4 a service
    cannot be started.

    Example: clara-flow up --detach
    """
    from rich.console import Console

    from clara_flow.services.platform import ensure_platform
    from clara_flow.services.state_file import StateFile

    settings = load_settings(data_dir=data_dir)
    console = Console()
    if not detach and not StateFile(settings.data_dir).is_supervised():
        _run_here(settings, console)
        return
    with console.status("Starting the platform") as status:
        handle = ensure_platform(settings, on_progress=status.update)
    console.print("Started." if handle.started_here else "It runs already.", highlight=False)
    _show(console, handle.state)


def _run_here(settings: Settings, console: Console) -> None:
    """Supervise in this process until Ctrl-C or SIGTERM."""
    from clara_flow.services.supervisor import Supervisor

    with console.status("Starting the platform") as status:
        supervisor = Supervisor(settings, on_progress=status.update)

        def say(state: PlatformState) -> None:
            status.stop()
            _show(console, state)
            console.print("Ctrl-C stops it.", highlight=False)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: supervisor.stop.set())
        if not supervisor.run(on_up=say):
            console.print("Another `clara-flow up` was quicker: it runs already.", highlight=False)


def down(data_dir: DataDir = None) -> None:
    """Stop the platform. Nothing happens when it does not run.

    Example: clara-flow down
    """
    from clara_flow.services.platform import take_down

    settings = load_settings(data_dir=data_dir)
    typer.echo("Stopped." if take_down(settings) else "It was not running.")


def status(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show every service: address, state, log file. Exit status: 0 all run; 4 one does not.

    Example: clara-flow status --json
    """
    from clara_flow.services.platform import look

    settings = load_settings(data_dir=data_dir)
    state = look(settings)
    if json_:
        document = {
            "data_dir": str(settings.data_dir),
            "up": state.is_up,
            "prefect_ui": state.prefect_ui_url,
            "services": [asdict(service) for service in state.services],
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        from rich.console import Console

        _show(Console(), state)
    if not state.is_up:
        raise typer.Exit(NOT_RUNNING)


def _show(console: Console, state: PlatformState) -> None:
    from rich.table import Table

    table = Table()
    for column in ("service", "state", "since", "address", "log"):
        table.add_column(column, overflow="fold")
    for service in state.services:
        style = {"running": "green", "starting": "yellow", "stopped": "dim"}.get(service.state, "red")
        shown = f"{service.state}: {service.message}" if service.message else service.state
        table.add_row(service.name, f"[{style}]{shown}[/]", service.since, service.address, service.log_file)
    console.print(table)
    if state.is_up:
        console.print(f"Prefect UI: {state.prefect_ui_url}", highlight=False)
