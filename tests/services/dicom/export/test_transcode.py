"""Fall-backs to plain syntaxes: the pixels stay what they are, whatever coded them."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import UID
from pynetdicom.dsutils import decode
from services.dicom.export.images import image, sample

from clara_flow.services.dicom.export.files import Unsendable
from clara_flow.services.dicom.export.transcode import LOSSY, PLAIN, transcoded

EXACT = [
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "ExplVR_BigEnd.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "liver_expb_1frame.dcm",
    "MR_small_RLE.dcm",
    "SC_rgb_rle_32bit_2frame.dcm",
    "SC_rgb_rle_16bit.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_jp2klossless.dcm",
    "GDCMJ2K_TextGBR.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "image_dfl.dcm",
]
LOSSY_BEFORE = ["JPEG2000.dcm", "SC_rgb_dcmtk_+eb+cy+n2.dcm", "JPEGLSNearLossless_16.dcm"]


def as_received(original: FileDataset, wanted: str) -> FileDataset:
    """What a peer makes of what is sent."""
    own = str(original.file_meta.TransferSyntaxUID)
    content = transcoded(original, own, wanted)
    received = decode(BytesIO(content), UID(wanted).is_implicit_VR, True)
    received.file_meta = original.file_meta
    received.file_meta.TransferSyntaxUID = UID(wanted)
    return received  # type: ignore[return-value]


@pytest.mark.parametrize("wanted", PLAIN)
@pytest.mark.parametrize("name", EXACT)
def test_what_was_coded_without_loss_is_the_same(name: str, wanted: str) -> None:
    original = dcmread(sample(name))
    assert str(original.file_meta.TransferSyntaxUID) not in LOSSY
    received = as_received(dcmread(sample(name)), wanted)
    assert np.array_equal(received.pixel_array, original.pixel_array)
    assert received.SOPInstanceUID == original.SOPInstanceUID
    assert received.SOPClassUID == original.SOPClassUID


@pytest.mark.parametrize("name", LOSSY_BEFORE)
def test_what_was_coded_with_loss_is_as_it_is_seen(name: str) -> None:
    original = dcmread(sample(name))
    received = as_received(dcmread(sample(name)), PLAIN[0])
    assert np.array_equal(received.pixel_array, original.pixel_array)
    assert received.SOPInstanceUID == original.SOPInstanceUID


@pytest.mark.parametrize("name", ["ExplVR_BigEnd.dcm", "MR_small_bigendian.dcm"])
def test_big_endian_words_are_those_of_dcmtk(name: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.dcm"
    subprocess.run(["dcmconv", "+te", str(sample(name)), str(theirs)], check=True)
    ours = as_received(dcmread(sample(name)), PLAIN[0])
    assert ours.PixelData == dcmread(theirs).PixelData


def test_what_cannot_be_decoded_is_said() -> None:
    broken = image()
    broken.compress("1.2.840.10008.1.2.5")
    broken.PixelData = broken.PixelData[:40] + b"\xff" * 16
    with pytest.raises(Unsendable, match="cannot be decoded from RLE Lossless"):
        transcoded(broken, "1.2.840.10008.1.2.5", PLAIN[0])


def test_big_endian_pixels_that_are_read_in_two_ways_are_left_alone() -> None:
    with pytest.raises(Unsendable, match="read in two ways"):
        as_received(dcmread(sample("rtdose_expb.dcm")), PLAIN[0])


def test_a_file_that_is_not_what_it_says_is_refused() -> None:
    with pytest.raises(Unsendable):  # explicit VR by its meta information, implicit VR in fact
        as_received(dcmread(sample("SC_rgb_jpeg.dcm")), PLAIN[0])
