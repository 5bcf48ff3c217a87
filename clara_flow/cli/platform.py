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
    """Start the platform: PostgreSQL, the Prefect server, the pool, the DICOM adapter and the gateway.

    Ctrl-C stops it, unless it was detached.

    A platform that runs already is found, whoever started it. Exit status: 0 it runs, or ran until Ctrl-C; 2 a setting
    cannot be used; 4 a service cannot be started; 130 Ctrl-C while it started.

    Example: clara-flow up --detach
    """
    from rich.console import Console

    from clara_flow.services.platform import ensure_platform
    from clara_flow.services.state_file import StateFile

    settings = load_settings(data_dir=data_dir)
    console = Console()
    if not detach and not StateFile(settings.data_dir).is_supervised() and _run_here(settings, console):
        return
    with console.status("Starting the platform") as status:
        handle = ensure_platform(settings, on_progress=status.update)
    console.print("Started." if handle.started_here else "It runs already.", highlight=False)
    show_platform(console, handle.state)


def _run_here(settings: Settings, console: Console) -> bool:
    """Supervise in this process until Ctrl-C or SIGTERM. Returns False when another process does already."""
    from clara_flow.services.endings import on_end
    from clara_flow.services.supervisor import Supervisor

    was_up = False
    with console.status("Starting the platform") as status:
        supervisor = Supervisor(settings, on_progress=status.update)

        def say(state: PlatformState) -> None:
            nonlocal was_up
            was_up = True
            status.stop()
            show_platform(console, state)
            console.print("Ctrl-C stops it.", highlight=False)

        on_end(supervisor.stop.set, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        ran = supervisor.run(on_up=say)
    if ran and not was_up:
        raise KeyboardInterrupt
    if ran:
        console.print("Stopped.", highlight=False)
    return ran


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
    """Show every service, what goes on at the DICOM side, and what housekeeping did last.

    Exit status: 0 all services run; 4 one does not. `clara-flow doctor` says what to do.

    Example: clara-flow status --json
    """
    from clara_flow.cli.activity import activity, activity_json, activity_lines
    from clara_flow.services.platform import look

    settings = load_settings(data_dir=data_dir)
    state = look(settings)
    now = activity(settings, state)
    if json_:
        document = {
            "data_dir": str(settings.data_dir),
            "up": state.is_up,
            "prefect_ui": state.prefect_ui_url,
            "services": [asdict(service) for service in state.services],
            **activity_json(now),
        }
        typer.echo(json.dumps(document, indent=2))
    else:
        from rich.console import Console

        show_platform(Console(), state)
        for line in activity_lines(now):
            typer.echo(line)
    if not state.is_up:
        raise typer.Exit(NOT_RUNNING)


def show_platform(console: Console, state: PlatformState) -> None:
    """One paragraph per service; addresses and paths are never broken, so that they can be copied."""
    from rich.text import Text

    width = max(len(service.name) for service in state.services)
    for service in state.services:
        style = {"running": "green", "starting": "yellow", "stopped": "dim", "unknown": "dim"}.get(service.state, "red")
        facts = [
            f"since {service.since.replace('T', ' ').removesuffix('+00:00')} UTC" if service.since else "",
            "external" if service.external else "",
            f"process {service.pid}" if service.pid else "",
            f"started again {service.restarts} x" if service.restarts else "",
        ]
        head = Text.assemble(
            (service.name.ljust(width), "bold"), "  ", (service.state, style), "  ", ", ".join(filter(None, facts))
        )
        below = (service.message, f"address  {service.address}", service.log_file and f"log      {service.log_file}")
        lines = [Text(f"{'':{width}}  {text}") for text in below if text]
        for line in (head, *lines):
            console.print(line, soft_wrap=True, highlight=False)
    if state.is_up:
        console.print(f"Prefect UI: {state.prefect_ui_url}", soft_wrap=True, highlight=False)
