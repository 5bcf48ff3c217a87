"""The `clara-flow` command: a table of subcommands, each imported only when it is called.

Nothing heavy may be imported here: `clara-flow --help` must answer in under 0.3 s. A subcommand is a function in a
module of its noun; its docstring is its help text and ends in an example.

Exit status: 0 fine; 1 the job or the checked thing failed; 2 wrong usage or setting; 3 the input cannot be used;
4 the platform is not available; 5 the resources can never fit; 70 a bug of ours; 130 interrupted.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer
import typer.core
import typer.main

# command -> (module, function or Typer object, one-line help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("clara_flow.cli.run", "run", "Run a pipeline on a folder of files."),
    "demo": ("clara_flow.cli.demo", "demo", "Send a sample MR study by DICOM; its result arrives at a demo PACS."),
    "queue": ("clara_flow.cli.queue", "queue", "Show what waits, for what, and for how long."),
    "cancel": ("clara_flow.cli.queue", "cancel", "End a job."),
    "gpu": ("clara_flow.cli.gpu", "app", "Show the pool's GPUs and who holds them; take them out of service."),
    "quota": ("clara_flow.cli.quota", "app", "Show and set what tenants may hold."),
    "simulate": ("clara_flow.cli.simulate", "simulate", "Replay a day of arrivals on a pool of your choice."),
    "dicom": ("clara_flow.cli.dicom", "app", "Say who may send studies, what becomes of them, where results go."),
    "results": ("clara_flow.cli.deliveries", "app", "List, retry and discard deliveries of results."),
    "check": ("clara_flow.cli.pipelines", "check", "Check pipeline definitions."),
    "compile": ("clara_flow.cli.pipelines", "compile_", "Compile a definition to its plan or a drawing."),
    "up": ("clara_flow.cli.platform", "up", "Start the platform."),
    "down": ("clara_flow.cli.platform", "down", "Stop the platform."),
    "status": ("clara_flow.cli.platform", "status", "Show the platform's services."),
    "doctor": ("clara_flow.cli.doctor", "doctor", "Check this machine and say how to mend it."),
    "operators": ("clara_flow.cli.operators", "app", "List, describe and build operators."),
}


class LazyGroup(typer.core.TyperGroup):
    """Imports a subcommand's module when it is asked for by name; lists them from the table alone."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """The command of that name, its module imported now; None when there is none."""
        if cmd_name not in COMMANDS:
            return None
        module_name, attribute, _ = COMMANDS[cmd_name]
        target = getattr(importlib.import_module(module_name), attribute)
        if isinstance(target, typer.Typer):
            return typer.main.get_command(target)
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(cmd_name)(target)
        return typer.main.get_command(single)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup, add_completion=True, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False
)


def print_version(wanted: bool) -> None:
    """Print the version and stop, when `--version` was given."""
    if wanted:
        from clara_flow import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=print_version
    ),
) -> None:
    """Medical-imaging AI pipelines: DICOM in, DICOM out.

    Example: clara-flow run brain-extraction --input study/ --output results/
    """
