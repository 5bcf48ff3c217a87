"""One door to volume files of every format: by name in, by name out."""

from __future__ import annotations

from pathlib import Path

from clara_flow.operators.imaging.metaimage import VolumeFileError, read_metaimage, write_metaimage
from clara_flow.operators.imaging.nifti import read_nifti, write_nifti
from clara_flow.operators.imaging.volume import Volume

__all__ = ["SUFFIXES", "VolumeFileError", "find_volumes", "read_volume", "volume_suffix", "write_volume"]

SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha")
"""Endings of volume files, in the order in which Clara's operators choose one."""


def volume_suffix(path: Path) -> str | None:
    """The volume ending of a file name in lower case (`.nii.gz` counts as one), or None.

    >>> volume_suffix(Path("1.2.840.NII.GZ")), volume_suffix(Path("1.2.840.dcm"))
    ('.nii.gz', None)
    """
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def find_volumes(folder: Path) -> list[Path]:
    """Volume files directly in `folder`, by ending in the order of SUFFIXES, then by name; no hidden ones."""
    found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    ranked = [(SUFFIXES.index(suffix), path) for path in found if (suffix := volume_suffix(path))]
    return [path for _, path in sorted(ranked)]


def read_volume(path: Path) -> Volume:
    """Read one volume file; the ending decides the format.

    Raises VolumeFileError (unknown ending, broken or unsuited file), FileNotFoundError, GeometryError.
    """
    match volume_suffix(path):
        case ".mhd" | ".mha":
            return read_metaimage(path)
        case ".nii" | ".nii.gz":
            return read_nifti(path)
    raise VolumeFileError(f"{path.name}: not a volume file; known endings are {', '.join(SUFFIXES)}")


def write_volume(path: Path, volume: Volume) -> None:
    """Write one volume file; the ending decides the format. The folder must exist. The same volume, the same bytes.

    Raises VolumeFileError where the ending is unknown or the format cannot hold the volume.
    """
    match volume_suffix(path):
        case ".mhd" | ".mha":
            write_metaimage(path, volume)
        case ".nii" | ".nii.gz":
            write_nifti(path, volume)
        case _:
            raise VolumeFileError(f"{path.name}: not a volume file; known endings are {', '.join(SUFFIXES)}")
