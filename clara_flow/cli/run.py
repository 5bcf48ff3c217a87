"""`clara-flow run`: the main job, from a folder to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clara_flow.cli.arguments import parse_arguments, parse_priority


def run(
    pipeline: Annotated[
        str, typer.Argument(help="A definition file, or the name of a bundled definition.", show_default=False)
    ] = "",
    input_: Annotated[
        Path | None, typer.Option("--input", help="Folder with the job's input; it is copied.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for the results; made when missing.", show_default=False)
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="process or docker. Default: the setting CLARA_FLOW_RUNTIME.", show_default=False)
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Value of a pipeline parameter.")
    ] = None,
    timeout: Annotated[
        int | None, typer.Option(metavar="S", help="Seconds that the job may run.", show_default=False)
    ] = None,
    priority: Annotated[
        str, typer.Option(help="lower, normal, higher or immediate (the emergency lane).", callback=parse_priority)
    ] = "normal",
    tenant: Annotated[
        str | None, typer.Option(help="Who the job counts for in quotas and fair shares.", show_default=False)
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="JOB", help="Run a job again that did not complete; what it sealed is not run again.")
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the payload folder of a job that completed.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON on stdout.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder of the platform. Default: CLARA_FLOW_DATA_DIR.", show_default=False)
    ] = None,
) -> None:
    """Run a pipeline on a folder of files and put its results into another folder.

    The platform is started in the background when it is not up (`clara-flow down` stops it). Ctrl-C cancels the job.

    Exit status: 0 completed; 1 the job failed or was cancelled by its timeout; 2 wrong usage; 3 the input or the
    definition cannot be used; 4 the platform is not available or a disk is full; 5 the resources can never fit;
    130 interrupted.

    Example: clara-flow run brain-extraction --input study/ --output results/
    """
    from rich.console import Console

    from clara_flow.cli.main_job import Order, as_json, run_main_job, show
    from clara_flow.errors import SettingsError
    from clara_flow.settings import load_settings

    if output is None:
        raise SettingsError("where shall the results go? Give --output DIR")
    if bool(resume) == bool(pipeline) or (pipeline and input_ is None):
        raise SettingsError("give a PIPELINE and --input DIR, or --resume JOB")
    settings = load_settings(data_dir=data_dir, runtime=runtime)
    console = Console(stderr=True)
    order = Order(
        target=output,
        pipeline=pipeline,
        source=input_,
        resume=resume,
        arguments=parse_arguments(set_ or []),
        timeout_s=timeout,
        priority=priority,
        tenant=tenant,
        keep=keep,
    )
    done = run_main_job(settings, console, order)
    if json_:
        typer.echo(json.dumps(as_json(done), indent=2))
    else:
        show(console, done)
