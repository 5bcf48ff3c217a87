"""`clara-flow doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from clara_flow.cli.platform import DataDir
from clara_flow.settings import load_settings

STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Check this machine and say how to mend what is wrong. Nothing is started or changed.

    Exit status: 0 the main job can run (notes may tell what it will lack); 1 a problem prevents it.

    Example: clara-flow doctor --json
    """
    from clara_flow.services.doctor import examine, prevents_the_main_job

    settings = load_settings(data_dir=data_dir)
    findings = examine(settings)
    fails = prevents_the_main_job(findings)
    if json_:
        typer.echo(json.dumps({"fit": not fails, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console()
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            head = Text.assemble((f"{finding.level:<7}", STYLES[finding.level]), f"  {finding.check:<{width}}  ")
            console.print(head.append(finding.text), soft_wrap=True, highlight=False)
            if finding.remedy:
                console.print(Text(f"{'':{width + 11}}{finding.remedy}"), soft_wrap=True, highlight=False)
    if fails:
        raise typer.Exit(1)
