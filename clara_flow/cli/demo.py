"""`clara-flow demo`: the main job on a head that everybody may look at."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import typer

SAMPLE_STUDY = "clara_flow.operators.imaging.sample_study"


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-output"),
    runtime: Annotated[
        str | None, typer.Option(help="process or docker. Default: the setting CLARA_FLOW_RUNTIME.", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option(help="Keep the platform up until Ctrl-C.")] = True,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder of the platform. Default: CLARA_FLOW_DATA_DIR.", show_default=False)
    ] = None,
) -> None:
    """Make a real MR study as DICOM, run brain extraction on it, show where the results and the Prefect UI are.

    The study is the Colin27 head where Debian's mricron-data is installed, the MNI152 head of the package nilearn
    elsewhere. Everything stays up until Ctrl-C, so that you can look around; then it is stopped.

    Example: clara-flow demo --output demo-output
    """
    from rich.console import Console

    from clara_flow.cli.main_job import Order, run_main_job, show, terminating_like_ctrl_c
    from clara_flow.errors import ClaraFlowError
    from clara_flow.services.platform import take_down
    from clara_flow.services.state_file import StateFile
    from clara_flow.settings import load_settings

    settings = load_settings(data_dir=data_dir, runtime=runtime)
    console = Console(stderr=True)
    was_up = StateFile(settings.data_dir).is_supervised()
    with tempfile.TemporaryDirectory(prefix="clara-flow-demo-") as folder:
        study = Path(folder) / "study"
        made = subprocess.run([sys.executable, "-m", SAMPLE_STUDY, "--output", str(study)], check=False)
        if made.returncode != 0:
            raise ClaraFlowError("the sample study could not be made; the lines above say why")
        order = Order(target=output, pipeline="brain-extraction", source=study, arguments={}, keep=True)
        try:
            done = run_main_job(settings, console, order)
            show(console, done)
            pictures = [path for path in done.written if path.suffix == ".png"]
            for picture in pictures:
                console.print(f"Look at:    {picture.resolve()}", markup=False, highlight=False, soft_wrap=True)
            if wait:
                console.print("The Prefect UI stays up until Ctrl-C.", highlight=False)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                with terminating_like_ctrl_c():
                    threading.Event().wait()
        except KeyboardInterrupt:
            console.print("Stopping.", highlight=False)
        finally:
            if not was_up:
                take_down(settings)
