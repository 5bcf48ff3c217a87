"""What is read of files that anybody may have sent: the same as pydicom reads, in bounded memory."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import psutil
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian
from services.dicom.spool.data_sets import encoded

from clara_flow.services.dicom.reading import LARGEST_DATA_SET_BYTES, read_header, read_whole

MIB = 2**20


def bomb(path: Path, head: bytes, inflated_bytes: int) -> Path:
    """A deflated file: the encoded elements of `head`, then pixels of zeros that inflate to so many bytes."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = DeflatedExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    start = io.BytesIO()
    write_file_meta_info(start, meta, enforce_standard=True)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    with path.open("wb") as file:
        file.write(bytes(128) + b"DICM" + start.getvalue() + deflater.compress(head))
        for _ in range(inflated_bytes // MIB):
            file.write(deflater.compress(bytes(MIB)))
        file.write(deflater.flush())
    return path


def element(tag: bytes, vr: bytes, length: int) -> bytes:
    return tag + vr + b"\0\0" + length.to_bytes(4, "little")


@pytest.mark.parametrize("name", ["image_dfl.dcm", "CT_small.dcm", "MR_small_bigendian.dcm", "rtplan.dcm"])
def test_it_reads_what_pydicom_reads(name: str) -> None:
    path = Path(str(get_testdata_file(name)))
    assert read_whole(path) == pydicom.dcmread(path)
    assert read_header(path) == pydicom.dcmread(path, stop_before_pixels=True)
    some = ["PatientName", "SOPInstanceUID"]
    header = read_header(path, some)
    assert header == pydicom.dcmread(path, stop_before_pixels=True, specific_tags=some)
    assert header.file_meta.TransferSyntaxUID == pydicom.dcmread(path).file_meta.TransferSyntaxUID


def test_what_was_deflated_is_written_deflated(tmp_path: Path) -> None:
    path = Path(str(get_testdata_file("image_dfl.dcm")))
    read_whole(path).save_as(tmp_path / "again.dcm")
    assert pydicom.dcmread(tmp_path / "again.dcm") == pydicom.dcmread(path)


def test_a_bomb_is_inflated_no_further_than_it_may_be(tmp_path: Path) -> None:
    head = Dataset()
    head.SOPInstanceUID = "1.2.3"
    plain = encoded(head, "1.2.840.10008.1.2.1")
    size = LARGEST_DATA_SET_BYTES + 64 * MIB
    pixels = bomb(tmp_path / "pixels.dcm", plain + element(b"\xe0\x7f\x10\0", b"OB", size), size)
    before_them = bomb(tmp_path / "before.dcm", plain + element(b"\x11\0\x10\x10", b"OB", size), size)
    assert pixels.stat().st_size < 2 * MIB
    process = psutil.Process()
    before = process.memory_info().rss
    assert read_header(pixels).SOPInstanceUID == "1.2.3"
    with pytest.raises(ValueError, match="inflates to more than"):
        read_header(before_them)
    assert process.memory_info().rss - before < 200 * MIB
    with pytest.raises(ValueError, match="inflates to more than"):
        read_whole(pixels)
