"""Operator: every series of a DICOM study becomes a volume, named by its Series Instance UID.

    python -m clara_flow.operators.dicom_reader

`NVIDIA_CLARA_IMAGE_FORMAT` chooses mhd (default), nii or nii.gz. A series that cannot be a volume is told and left out;
the operator fails when no series gave one, and when the study holds several patients.
"""

from __future__ import annotations

import os
from pathlib import Path

from clara_flow.operators.dicom_reader.report import REPORT_NAME, Report
from clara_flow.operators.dicom_reader.study import IMAGE_FORMATS, StudyUnusable, read_study
from clara_flow.operators.sdk import Driver, Payload, log


def execute(driver: Driver, payload: Payload) -> bool:
    """Write the volumes and `reader-report.json`, and what may be known outside to the report `metrics`."""
    image_format = os.environ.get("NVIDIA_CLARA_IMAGE_FORMAT") or IMAGE_FORMATS[0]
    if image_format not in IMAGE_FORMATS:
        log.error(f"NVIDIA_CLARA_IMAGE_FORMAT is {image_format!r}; choose {', '.join(IMAGE_FORMATS)}")
        return False
    source, target = Path(payload.input_entries[0].path), Path(payload.output_entries[0].path)
    try:
        report = read_study(source, target, image_format=image_format, tell=log.info)
    except StudyUnusable as problem:
        log.error(str(problem))
        return False
    except OSError as problem:
        log.error(f"the volumes cannot be written to {target}: {problem.strerror or problem}")
        return False
    driver.report("metrics", _facts(report))
    for warning in report.warnings:
        log.warning(warning)
    if not report.series:
        reasons = "; ".join(map(str, report.skipped_series[:3])) or "it holds no images that could be one"
        log.error(f"no series of this study gave a volume: {reasons}; {REPORT_NAME} lists every file")
        return False
    log.info("study read", volumes=len(report.series), refused=len(report.skipped_series))
    return True


def _facts(report: Report) -> dict[str, object]:
    """The report without identifiers and file names."""
    return {
        "volumes": [
            {"modality": made.modality, "shape": list(made.shape), "spacing_mm": list(made.spacing_mm)}
            for made in report.series
        ],
        "warnings": list(report.warnings),
    }


def main() -> None:
    """Run the operator; ends the process with the driver's exit code."""
    with Driver(execute_handler=execute):
        pass


if __name__ == "__main__":
    main()
