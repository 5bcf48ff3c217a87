"""DICOM files to send, small and made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
RLE = "1.2.840.10008.1.2.5"


def image(side: int = 16, *, seed: int = 0, sop_class: str = SECONDARY_CAPTURE) -> FileDataset:
    """A grey image of side x side pixels, with UIDs of its own."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data_set = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data_set.SOPClassUID, data_set.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = generate_uid(), generate_uid()
    data_set.PatientName, data_set.PatientID, data_set.Modality = "Planted^Name", "PLANTED-ID", "OT"
    data_set.Rows = data_set.Columns = side
    data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
    data_set.BitsAllocated = data_set.BitsStored = 16
    data_set.HighBit, data_set.PixelRepresentation = 15, 0
    pixels = np.random.default_rng(seed).integers(0, 4096, (side, side), np.uint16)
    data_set.PixelData = pixels.tobytes()
    return data_set


def write(data_set: FileDataset, path: Path) -> Path:
    """Write it as a PS3.10 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data_set.save_as(path, enforce_file_format=True)
    return path


def sample(name: str) -> Path:
    """One of pydicom's own test files."""
    path = get_testdata_file(name)
    assert isinstance(path, str)
    return Path(path)


def data_set_bytes(path: Path) -> bytes:
    """The encoded data set of a file, as it must go over the wire."""
    from pynetdicom.dsutils import split_dataset

    _, offset = split_dataset(path)
    return path.read_bytes()[offset:]


def same_pixels(one: Path, other: Path) -> bool:
    """Whether both decode to the same pixels."""
    return bool(np.array_equal(dcmread(one).pixel_array, dcmread(other).pixel_array))
