"""Operator: every volume of the input becomes a mask of the brain, on the same grid and under the same name.

    python -m clara_flow.operators.brain_extraction

The model's folder is the platform's, else `CLARA_MODEL_DIR`, else the user's cache (see `model_folder`). A volume that
cannot be used is told and left out; the operator fails when no volume gave a mask.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from clara_flow.operators.brain_extraction.extraction import ExtractionError, Network, extract_brain
from clara_flow.operators.brain_extraction.model_folder import (
    BOX_FILE,
    BRAIN_FILE,
    MODEL_NAME,
    MODEL_VERSION,
    ModelUnusable,
    default_folder,
    read_record,
)
from clara_flow.operators.brain_extraction.network import load_network, requested_threads
from clara_flow.operators.imaging import (
    GeometryError,
    VolumeFileError,
    find_volumes,
    read_volume,
    volume_suffix,
    write_volume,
)
from clara_flow.operators.sdk import Driver, Payload, log

PLAUSIBLE_ML = (300.0, 2500.0)
"""Brains of newborns to large adults; outside, the volume was hardly a T1-weighted MR of a whole head."""


class BrainExtraction:
    """The operator's handlers and, between them, the loaded networks."""

    def __init__(self) -> None:
        self._networks: tuple[Network, Network] | None = None

    def prepare(self, driver: Driver) -> bool:
        """Load the networks; no input is needed for that."""
        folder = driver.models.get(MODEL_NAME) or Path(os.environ.get("CLARA_MODEL_DIR") or default_folder())
        try:
            read_record(folder)
            threads = requested_threads()
        except (ModelUnusable, ValueError) as problem:
            log.error(str(problem))
            return False
        box, brain = (load_network(folder / name, threads=threads) for name in (BOX_FILE, BRAIN_FILE))
        self._networks = box, brain
        log.info("model loaded", model=MODEL_NAME, version=MODEL_VERSION, threads=threads)
        return True

    def execute(self, driver: Driver, payload: Payload) -> bool:
        """Write `<name>.mhd` for each volume and the facts about all to the report `metrics`."""
        source, target = Path(payload.input_entries[0].path), Path(payload.output_entries[0].path)
        paths = find_volumes(source)
        if not paths:
            log.error(f"no volume (.mhd, .mha, .nii, .nii.gz) in {source}; did the step before write one?")
            return False
        masks: list[dict[str, Any]] = []
        refused: list[dict[str, str]] = []
        for number, path in enumerate(paths, start=1):
            started = time.monotonic()
            try:
                facts = self._extract(path, target, taken={mask["mask"] for mask in masks})
            except (ExtractionError, VolumeFileError, GeometryError) as problem:
                log.warning(f"volume {number} of {len(paths)} gives no mask: {problem}")
                refused.append({"volume": path.name, "reason": str(problem)})
                continue
            masks.append(facts)
            log.info(
                f"volume {number} of {len(paths)} done",
                brain_ml=facts["brain_ml"],
                seconds=round(time.monotonic() - started, 1),
            )
        driver.report(
            "metrics", {"model": {"name": MODEL_NAME, "version": MODEL_VERSION}, "masks": masks, "refused": refused}
        )
        if not masks:
            log.error("no volume gave a mask of the brain; see the warnings above")
        return bool(masks)

    def _extract(self, path: Path, target: Path, *, taken: set[str]) -> dict[str, Any]:
        """Make one mask. Returns its facts: volumes in millilitres, shapes (slice, row, column)."""
        assert self._networks is not None  # noqa: S101 - prepare succeeded, else execute is not called
        name = path.name[: -len(volume_suffix(path) or "")] + ".mhd"
        if name in taken:
            raise VolumeFileError(f"{path.name}: another volume of this name has given {name} already")
        volume = read_volume(path)
        mask = extract_brain(volume, *self._networks)
        write_volume(target / name, volume.with_array(mask))
        brain_voxels = int(np.count_nonzero(mask))
        voxel_ml = abs(float(np.linalg.det(volume.affine_lps[:3, :3]))) / 1000
        brain_ml = brain_voxels * voxel_ml
        is_plausible = PLAUSIBLE_ML[0] <= brain_ml <= PLAUSIBLE_ML[1]
        if not is_plausible:
            log.warning(f"a brain of {brain_ml:.0f} ml is unlikely; is this a T1-weighted MR of a whole head?")
        return {
            "volume": path.name,
            "mask": name,
            "shape": list(volume.shape),
            "voxels": mask.size,
            "brain_voxels": brain_voxels,
            "brain_ml": round(brain_ml, 3),
            "is_plausible": is_plausible,
        }


def main() -> None:
    """Run the operator; ends the process with the driver's exit code."""
    operator = BrainExtraction()
    with Driver(execute_handler=operator.execute, prepare_handler=operator.prepare):
        pass


if __name__ == "__main__":
    main()
