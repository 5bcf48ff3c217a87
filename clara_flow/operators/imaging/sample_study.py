"""A real head as a DICOM MR study of an invented patient, for demos and tests.

    python -m clara_flow.operators.imaging.sample_study --output DIR

Colin27 (one man's average T1 head, with skull) where Debian's `mricron-data` is installed, else MNI152 (an average of
152 heads, without skull) from the package nilearn. One MR Image Storage instance per slice (PS3.3 A.4), UIDs derived
from the source and orientation: the same call makes the same study, byte for byte.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from clara_flow.operators.imaging.volume import Volume
from clara_flow.operators.imaging.volume_files import VolumeFileError, read_volume

COLIN27 = Path("/usr/share/mricron/templates/ch2.nii.gz")
MNI152_IN_NILEARN = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"

# Towards which patient direction slice, row and column index grow.
ORIENTATIONS = {"axial": "SPL", "sagittal": "LIP", "coronal": "PIL", "oblique": "SPL"}
OBLIQUE_DEGREES = (12.0, -8.0, 5.0)  # about the L, P and S axis: a head that lies askew


def find_source(wanted: str) -> tuple[str, Path]:
    """Name and file of the head: `auto`, `colin27`, `mni152` or a NIfTI file. Raises FileNotFoundError."""
    candidates = {"colin27": COLIN27}
    if (nilearn := importlib.util.find_spec("nilearn")) and nilearn.submodule_search_locations:
        candidates["mni152"] = Path(nilearn.submodule_search_locations[0]) / MNI152_IN_NILEARN
    if wanted not in ("auto", "colin27", "mni152"):
        candidates = {Path(wanted).name.split(".")[0]: Path(wanted)}
    elif wanted != "auto":
        candidates = {name: path for name, path in candidates.items() if name == wanted}
    for name, path in candidates.items():
        if path.is_file():
            return name, path
    raise FileNotFoundError(
        f"no head for {wanted!r}: install Debian's mricron-data (Colin27) or the Python package nilearn (MNI152), "
        "or give a NIfTI file"
    )


def oriented(head: Volume, orientation: str) -> Volume:
    """The head on slices of that orientation; no voxel is resampled, an oblique head is a rotated one."""
    volume = head.reoriented(ORIENTATIONS[orientation])
    if orientation != "oblique":
        return volume
    rotation = np.eye(4)
    for axis, degrees in enumerate(OBLIQUE_DEGREES):
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn = np.eye(4)
        first, second = [other for other in range(3) if other != axis]
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        rotation = turn @ rotation
    return Volume(volume.array, rotation @ volume.affine_lps)


def make_study(head: Volume, output: Path, *, name: str, orientation: str) -> list[Path]:
    """Write the study's instances to the folder `output`, made whole or not at all. Returns their paths.

    head        intensities 0..4095 after rounding; any orientation.

    A folder that holds this very study already is left as it is. Raises FileExistsError when it holds anything else,
    such as another head or orientation.
    """
    volume = oriented(head, orientation)
    paths = [output / f"IM{number:04d}.dcm" for number in range(1, volume.shape[0] + 1)]
    series = generate_uid(entropy_srcs=["clara-flow sample", name, orientation, "series"])
    if output.exists() and (found := sorted(output.iterdir())):
        if found == paths and _series_of(paths[0]) == series:
            return paths
        raise FileExistsError(f"{output} holds other files; choose another folder")
    pixels = np.clip(np.rint(volume.array), 0, 4095).astype(np.uint16)
    uids = {
        part: generate_uid(entropy_srcs=["clara-flow sample", name, orientation, part]) for part in ("study", "frame")
    }
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number, (path, image) in enumerate(zip(paths, pixels, strict=True), start=1):
        instance = generate_uid(entropy_srcs=[series, str(number)])
        dataset = _instance(volume, image, number, name=name, uids=uids, series=series, instance=instance)
        dataset.save_as(partial / path.name, enforce_file_format=True)
    partial.replace(output)
    return paths


def _series_of(path: Path) -> str:
    """Series Instance UID of a file; empty where it has none. Orientations may share a number of slices, not a UID."""
    return str(dcmread(path, force=True, specific_tags=["SeriesInstanceUID"]).get("SeriesInstanceUID", ""))


def _instance(
    volume: Volume, image: np.ndarray, number: int, *, name: str, uids: dict[str, UID], series: UID, instance: UID
) -> Dataset:
    """One slice as MR Image Storage. `image` (rows, columns) uint16."""
    rows, columns = image.shape
    affine, spacing = volume.affine_lps, volume.spacing_mm
    along_columns, along_rows = volume.direction[:, 2], volume.direction[:, 1]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = instance
    # Patient and study: invented, and plainly so.
    dataset.PatientName = "Sample^Head"
    dataset.PatientID = "CLARA-FLOW-SAMPLE"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.StudyInstanceUID = uids["study"]
    dataset.StudyDate, dataset.StudyTime = "20200101", "120000"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.StudyDescription = "clara-flow sample study"
    # Series, equipment, frame of reference.
    dataset.Modality, dataset.SeriesInstanceUID, dataset.SeriesNumber = "MR", series, 1
    dataset.SeriesDescription = f"T1 {name}"
    dataset.BodyPartExamined, dataset.PatientPosition = "HEAD", "HFS"
    dataset.SeriesDate, dataset.SeriesTime = dataset.StudyDate, dataset.StudyTime
    dataset.Manufacturer = "clara-flow"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uids["frame"], ""
    # Image plane (PS3.3 C.7.6.2) and MR image (C.8.3.1).
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, instance
    dataset.InstanceNumber = number
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.ContentDate, dataset.ContentTime = dataset.StudyDate, dataset.StudyTime
    dataset.AcquisitionDate, dataset.AcquisitionTime = dataset.StudyDate, dataset.StudyTime
    position = affine[:3, 3] + affine[:3, 0] * (number - 1)
    dataset.ImagePositionPatient = [_decimal(value) for value in position]
    dataset.ImageOrientationPatient = [_decimal(value) for value in (*along_columns, *along_rows)]
    dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimal(spacing[0])
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "SP", ""
    dataset.MRAcquisitionType = "3D"
    dataset.RepetitionTime, dataset.EchoTime, dataset.EchoTrainLength = "18", "10", 1
    dataset.MagneticFieldStrength, dataset.FlipAngle = "1.5", "30"
    # Pixels (C.7.6.3).
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = "100", "200"
    dataset.PixelData = image.tobytes()
    return dataset


def _decimal(value: float) -> str:
    """A decimal string (VR DS): at most 16 characters."""
    return f"{value:.10f}"[:16].rstrip("0").rstrip(".") if value >= 0 else "-" + _decimal(-value)[:15]


def main(arguments: list[str] | None = None) -> int:
    """Command line: make the study, say what was made. Exit status 1 when the head cannot be found or read."""
    parser = argparse.ArgumentParser(prog="python -m clara_flow.operators.imaging.sample_study", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the study")
    parser.add_argument("--source", default="auto", help="auto, colin27, mni152 or a NIfTI file")
    parser.add_argument("--orientation", choices=ORIENTATIONS, default="axial")
    given = parser.parse_args(arguments)
    try:
        name, path = find_source(given.source)
        head = read_volume(path)
        written = make_study(head, given.output, name=name, orientation=given.orientation)
    except (OSError, VolumeFileError, ValueError) as error:
        print(f"sample study: {error}", file=sys.stderr)
        return 1
    print(f"Made an MR study of {name}: {len(written)} {given.orientation} slices in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
