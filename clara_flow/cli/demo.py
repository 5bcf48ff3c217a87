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
    """Send a real MR study to the platform as a modality does, and see its result arrive at a PACS.

    The platform is started, with a demo PACS beside it (Orthanc where it is installed). The study goes to the DICOM
    listener by C-STORE, becomes a brain extraction by itself, and the segmentation is sent to the PACS. It is the
    Colin27 head where Debian's mricron-data is installed, the MNI152 head of the package nilearn elsewhere.
    Everything stays up until Ctrl-C, so that you can look around; then it is stopped.

    Example: clara-flow demo --output demo-output
    """
    from rich.console import Console

    from clara_flow.cli.demo_pacs import demo_pacs
    from clara_flow.cli.main_job import show, terminating_like_ctrl_c
    from clara_flow.cli.results import check_target
    from clara_flow.cli.wire_job import run_wire_job
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
        check_target(output, study)
        try:
            with terminating_like_ctrl_c(), demo_pacs(Path(folder) / "pacs") as pacs:
                delivered = run_wire_job(settings, console, study, output, pacs)
                show(console, delivered.done)
                for path in delivered.done.written:
                    if path.suffix == ".png":
                        console.print(f"Look at:    {path.resolve()}", markup=False, highlight=False, soft_wrap=True)
                where = f"{pacs.title} ({pacs.page})" if pacs.page else pacs.title
                console.print(f"Arrived:    {len(delivered.instances)} instance(s) at {where}", highlight=False)
                if wait:
                    console.print("Everything stays up until Ctrl-C.", highlight=False)
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    threading.Event().wait()
        except KeyboardInterrupt:
            console.print("Stopping.", highlight=False)
        finally:
            if not was_up:
                take_down(settings)
