"""Operator: one picture for each volume, with the outline of its mask.

    python -m clara_flow.operators.volume_montage

Input 0 holds volumes, input 1 their masks (may be missing). A mask belongs to the volume of the same name, or to the
only volume there is. One volume gives `montage.png`, several give `<name>.png` each.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from clara_flow.operators.imaging import (
    GeometryError,
    Volume,
    VolumeFileError,
    find_volumes,
    read_volume,
    volume_suffix,
)
from clara_flow.operators.sdk import Driver, Payload, log, replace_file
from clara_flow.operators.volume_montage.montage import draw_montage


def execute(driver: Driver, payload: Payload) -> bool:
    """Execute handler: writes the pictures; fails when a volume cannot be drawn or there is none."""
    folder, target = Path(payload.input_entries[0].path), Path(payload.output_entries[0].path)
    paths = find_volumes(folder)
    if not paths:
        log.error(f"no volume (.mhd, .mha, .nii, .nii.gz) in {folder}; did the step before write one?")
        return False
    masks = find_volumes(Path(payload.input_entries[1].path)) if len(payload.input_entries) > 1 else []
    by_name = {_stem(path): path for path in masks}
    for number, path in enumerate(paths, start=1):
        mask_path = masks[0] if len(masks) == len(paths) == 1 else by_name.get(_stem(path))
        if mask_path is None and masks:
            log.warning(f"volume {number} of {len(paths)} has no mask of its name; it is drawn without outline")
        try:
            picture = draw_montage(read_volume(path), _read_mask(mask_path))
        except (VolumeFileError, GeometryError) as problem:
            log.error(f"volume {number} of {len(paths)} cannot be drawn: {problem}")
            return False
        name = "montage.png" if len(paths) == 1 else f"{_stem(path)}.png"
        try:
            replace_file(target / name, picture)
        except OSError as problem:
            log.error(f"picture {number} of {len(paths)} cannot be written to {target}: {problem.strerror}")
            return False
        with Image.open(target / name) as drawn:
            log.info("picture drawn", width=drawn.width, height=drawn.height, bytes=len(picture))
    return True


def _stem(path: Path) -> str:
    """File name without the volume ending: `.nii.gz` counts as one."""
    return path.name[: -len(volume_suffix(path) or "")]


def _read_mask(path: Path | None) -> Volume | None:
    return None if path is None else read_volume(path)


def main() -> None:
    """Run the operator; ends the process with the driver's exit code."""
    with Driver(execute_handler=execute):
        pass


if __name__ == "__main__":
    main()
