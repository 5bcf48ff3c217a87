"""NIfTI files (.nii, .nii.gz). The only place that knows their RAS coordinates and (column, row, slice) order."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from clara_flow.operators.imaging.metaimage import VolumeFileError
from clara_flow.operators.imaging.volume import Volume

if TYPE_CHECKING:
    from nibabel.arrayproxy import ArrayProxy

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSED_AXES = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
_SCANNER_ANATOMICAL = 1  # NIfTI's xform code for scanner coordinates


def write_nifti(path: Path, volume: Volume) -> None:
    """Write `.nii` or `.nii.gz`; the same volume gives the same bytes (no time stamp or name in the gzip header).

    bool becomes uint8. Raises VolumeFileError for dtypes that NIfTI has not.
    """
    import nibabel

    array = volume.array.view(np.uint8) if volume.array.dtype == bool else volume.array
    affine_ras = _RAS_LPS @ volume.affine_lps @ _REVERSED_AXES
    try:
        image = nibabel.Nifti1Image(array.transpose(), affine_ras, dtype=array.dtype)
    except nibabel.spatialimages.HeaderDataError as problem:
        raise VolumeFileError(f"{path.name}: NIfTI cannot hold this volume: {problem}") from None
    image.set_sform(affine_ras, _SCANNER_ANATOMICAL)
    image.set_qform(affine_ras, _SCANNER_ANATOMICAL)  # loses a shear, so readers prefer the sform
    image.header.set_xyzt_units("mm")
    if path.name.endswith(".gz"):
        with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as stream:
            image.to_stream(stream)
    else:
        with path.open("wb") as raw:
            image.to_stream(raw)


def read_nifti(path: Path) -> Volume:
    """Read `.nii` or `.nii.gz` of three axes (further axes must have size 1; two axes make one slice).

    The array keeps the file's dtype; where the header scales values, it is float64 for 32-bit integers and wider,
    else float32. Raises VolumeFileError where the file is broken or has several time points.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.wrapstruct import WrapStructError

    try:
        image = nibabel.Nifti1Image.from_filename(path)
        proxy = cast("ArrayProxy", image.dataobj)
        if (proxy.slope, proxy.inter) == (1.0, 0.0):
            stored = proxy.get_unscaled()
        else:
            wide = proxy.dtype.itemsize > 2 and proxy.dtype != np.float32
            stored = np.asarray(proxy, np.float64 if wide else np.float32)
    except (ImageFileError, WrapStructError, zlib.error, OSError, EOFError, ValueError) as problem:
        raise VolumeFileError(f"{path.name}: not a readable NIfTI file: {problem}") from None
    shape = (*image.shape, 1, 1)
    if any(size != 1 for size in shape[3:]) or stored.dtype.kind not in "iuf":
        raise VolumeFileError(f"{path.name}: shape {image.shape} of {stored.dtype} is not one volume of numbers")
    array = stored.reshape(shape[:3], order="F").transpose()
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Volume(np.ascontiguousarray(array), _RAS_LPS @ image.affine @ _REVERSED_AXES)
