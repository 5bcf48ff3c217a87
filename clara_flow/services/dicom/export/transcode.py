"""Another transfer syntax for a peer that does not take a file's own: decoded, never compressed, so nothing is lost."""

from __future__ import annotations

from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.dsutils import encode

from clara_flow.services.dicom.export.files import Unsendable

# What pixel data are decoded to; both are plain, so one is as good as the other where there are none.
PLAIN = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
# Coded with loss before they came to us: their colours are made RGB, as every viewer does. The others stay exact.
LOSSY = frozenset(
    {
        "1.2.840.10008.1.2.4.50",  # JPEG baseline
        "1.2.840.10008.1.2.4.51",  # JPEG extended
        "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000
    }
)
LARGEST_PIXEL_BITS = 16
WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def transcoded(data_set: Dataset, own: str, wanted: str) -> bytes:
    """The data set of syntax `own`, encoded in `wanted`, one of `PLAIN`. It keeps its SOP Instance UID.

    The data set is changed on the way. Raises Unsendable when it cannot be decoded.
    """
    syntax = UID(own)
    try:
        if syntax.is_compressed and not syntax.is_deflated and "PixelData" in data_set:
            data_set.decompress(as_rgb=own in LOSSY, generate_instance_uid=False)
        if not syntax.is_little_endian:
            _refuse_ambiguous(data_set)
            data_set.walk(_swap)
        return encoded(data_set, wanted)
    except Unsendable:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a decoder makes of whatever a file holds
        raise Unsendable(f"it cannot be decoded from {name_of(own)} ({type(error).__name__})") from None


def encoded(data_set: Dataset, syntax: str) -> bytes:
    """A data set as it goes over the wire in `syntax`; compressed pixel data must be in it already.

    Raises Unsendable when something in it cannot be encoded.
    """
    uid = UID(syntax)
    content = encode(data_set, uid.is_implicit_VR, uid.is_little_endian, uid.is_deflated)
    if content is None:
        raise Unsendable(f"it cannot be encoded as {name_of(syntax)}")
    return content


def name_of(uid: str) -> str:
    """What people call it; the UID of a private one."""
    return UID(uid).name


def _refuse_ambiguous(data_set: Dataset) -> None:
    """Of larger big endian pixels dcmtk turns the words, pydicom the pixels: a dose must not change by being sent."""
    if "PixelData" in data_set and int(data_set.get("BitsAllocated", 0)) > LARGEST_PIXEL_BITS:
        raise Unsendable("its big endian pixels of more than 16 bits are read in two ways: it is not transcoded")


def _swap(data_set: Dataset, element: DataElement) -> None:
    """Words of big endian data are turned: pydicom leaves the bytes of these as they are."""
    size = WORD_BYTES.get(element.VR)
    value: Any = element.value
    if size is None or not isinstance(value, bytes):
        return
    turned = bytearray(value)
    for index in range(size):
        turned[index::size] = value[size - 1 - index :: size][: len(turned[index::size])]
    element.value = bytes(turned)
