"""Operator: every mask becomes one DICOM Segmentation object, `<its SOP Instance UID>.dcm`.

    python -m clara_flow.operators.dicom_seg_writer

Input 0 holds masks, input 1 (or the one named `study` or `dcm`; stand-alone `/dcm`) the original DICOM files. The
operator fails when any mask cannot be written; the others are written nevertheless.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

from clara_flow.operators.dicom_seg_writer.matching import NoSource, read_hints
from clara_flow.operators.dicom_seg_writer.segments import SegmentNamesError, segment_names
from clara_flow.operators.dicom_seg_writer.source import read_study
from clara_flow.operators.dicom_seg_writer.writer import MaskUnusable, SegFacts, SegOptions, write_seg
from clara_flow.operators.imaging import GeometryError, VolumeFileError, find_volumes
from clara_flow.operators.sdk import Driver, Payload, log

STUDY_NAMES = ("study", "dcm")
STAND_ALONE_STUDY = Path("/dcm")  # where Clara's operator has the originals


def execute(driver: Driver, payload: Payload) -> bool:
    """Execute handler: writes the objects and the report `metrics`."""
    entries = payload.input_entries
    masks_dir, output_dir = Path(entries[0].path), Path(payload.output_entries[0].path)
    study_dir = _study_dir(payload)
    try:
        options = _options(driver, upstream=entries[0].source)
    except SegmentNamesError as problem:
        log.error(str(problem))
        return False
    masks = find_volumes(masks_dir)
    if not masks:
        log.error(f"no mask (.mhd, .mha, .nii, .nii.gz) in {masks_dir}; did the step before write one?")
        return False
    study = read_study(study_dir)
    log.info("originals read", series=len(study.series), files_left_out=study.left_out)
    hints = read_hints([*(Path(entry.path) for entry in entries), study_dir])
    facts: list[SegFacts] = []
    for number, path in enumerate(masks, start=1):
        try:
            written = write_seg(path, study, output_dir, hints=hints, options=options, instance_number=number)
        except (MaskUnusable, NoSource, VolumeFileError, GeometryError) as problem:
            log.error(f"mask {number} of {len(masks)} gives no segmentation: {problem}")
            continue
        except OSError as problem:
            log.error(f"mask {number} of {len(masks)} cannot be read, or its segmentation written: {problem.strerror}")
            continue
        _tell(f"mask {number} of {len(masks)}", written)
        facts.append(written)
    driver.report("metrics", {"segmentations": [_record(written) for written in facts], "masks": len(masks)})
    return len(facts) == len(masks)


def _study_dir(payload: Payload) -> Path:
    entries = payload.input_entries
    for entry in list(entries)[1:]:
        if entry.name.casefold() in STUDY_NAMES:
            return Path(entry.path)
    if len(entries) > 1:
        return Path(entries[1].path)
    return STAND_ALONE_STUDY if STAND_ALONE_STUDY.is_dir() else Path(entries[0].path)


def _options(driver: Driver, *, upstream: str) -> SegOptions:
    """Options from the environment. Raises SegmentNamesError."""
    environment = os.environ
    return SegOptions(
        names=segment_names(environment.get("NVIDIA_SEG_LABELS", "")),
        algorithm_name=environment.get("NVIDIA_SEG_ALG_NAME") or upstream or "AI",
        algorithm_version=environment.get("NVIDIA_SEG_ALG_VERSION") or "unknown",
        allow_empty=environment.get("NVIDIA_SEG_ALLOW_EMPTY", "").casefold() in ("true", "1", "yes"),
        job=str(driver.job_id),
        stage=driver.stage_name,
    )


def _tell(which: str, written: SegFacts) -> None:
    if written.resampled:
        log.warning(
            f"{which} is on another grid than its source: labels were taken at the nearest voxel",
            beyond_the_slices=f"{written.lost:.2%}",
        )
    if not any(written.millilitres.values()):
        log.warning(f"{which} is empty; its segmentation says that nothing was found")
    log.info(
        f"{which} written",
        file=written.path.name,
        frames=written.frames,
        segments=len(written.millilitres),
        ml=round(sum(written.millilitres.values()), 3),
        source_by=written.found_by,
    )


def _record(written: SegFacts) -> dict[str, object]:
    return {
        "file": written.path.name,
        "frames": written.frames,
        "millilitres": written.millilitres,
        "resampled": written.resampled,
        "lost": written.lost,
        "found_by": written.found_by,
    }


def main() -> None:
    """Run the operator; ends the process with the driver's exit code."""
    # pydicom and highdicom quote the patient's attributes in their warnings
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with Driver(execute_handler=execute):
        pass


if __name__ == "__main__":
    main()
