"""Data sets as peers may send them: made at random, written by pydicom in every plain encoding."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
SYNTAXES = [IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED]
# Character sets, and letters that they have.
ALPHABETS = {
    None: "abc XYZ.09-",
    "ISO_IR 100": "abc äöüß",
    "ISO_IR 144": "abc Жукв",
    "ISO_IR 192": "abc ä語Ж한",
    "GB18030": "abc 王小东",
    ("", "ISO 2022 IR 87"): "abc 山田太郎",
}
TEXTS = ["StudyDescription", "SeriesDescription", "ProtocolName", "Manufacturer", "StationName", "PatientID"]
NUMBERS = ["InstanceNumber", "SeriesNumber", "NumberOfFrames", "ImagesInAcquisition"]
UIDS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
KEYS = ("00080050", "0020000D", "00280010", "00280009")


def encoded(dataset: Dataset, syntax: str) -> bytes:
    """The bytes of a data set in a transfer syntax."""
    file = DicomBytesIO()
    file.is_little_endian = syntax != BIG_ENDIAN
    file.is_implicit_VR = syntax == IMPLICIT
    write_dataset(file, dataset)
    content = file.getvalue()
    if syntax == DEFLATED:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = deflater.compress(content) + deflater.flush()
        content += b"\0" * (len(content) % 2)
    return content


def in_pieces(content: bytes, sizes: Iterator[int]) -> Iterator[memoryview]:
    """Cut into pieces of these sizes."""
    at = 0
    while at < len(content):
        size = next(sizes)
        yield memoryview(content)[at : at + size]
        at += size


def example() -> Dataset:
    """A small one with everything that can be cut."""
    inner, item = Dataset(), Dataset()
    inner.is_undefined_length_sequence_item = True
    inner.PatientID = "WRONG"
    item.ReferencedSOPInstanceUID = "9.9"
    item.add_new(0x00081199, "SQ", Sequence([inner]))
    item[0x00081199].is_undefined_length = True
    item.is_undefined_length_sequence_item = True
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3"
    dataset.ReferencedImageSequence = Sequence([item])
    dataset["ReferencedImageSequence"].is_undefined_length = True
    dataset.add_new(0x00091001, "UN", bytes(50))
    dataset.PatientID = "Müller"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.4", "1.2.5"
    dataset.NumberOfFrames = 3
    dataset.Rows, dataset.Columns = 4, 4
    dataset.add_new(0x7FE00010, "OW", bytes(32))
    return dataset


@st.composite
def nested(draw: st.DrawFn, depth: int = 3) -> Dataset:
    """An item: private and public attributes, and perhaps a sequence of items."""
    item = Dataset()
    if draw(st.booleans()):
        item.Modality = "XX"  # none of the data set's own
        item.StudyInstanceUID = "9.9.9"
    if draw(st.booleans()):
        item.add_new(0x00091001, "OB", draw(st.binary(max_size=40)))
        item.add_new(0x7FE00010, "OW", bytes(2 * draw(st.integers(0, 40))))
    if depth and draw(st.booleans()):
        item.add_new(0x00081140, "SQ", Sequence(draw(st.lists(nested(depth - 1), max_size=2))))
        item[0x00081140].is_undefined_length = draw(st.booleans())
    item.is_undefined_length_sequence_item = draw(st.booleans())
    return item


@st.composite
def data_sets(draw: st.DrawFn) -> Dataset:
    """Some of the attributes that are looked for among others, sequences everywhere, pixel data at the end."""
    dataset = Dataset()
    character_set = draw(st.sampled_from(list(ALPHABETS)))
    if character_set is not None:
        dataset.SpecificCharacterSet = list(character_set) if isinstance(character_set, tuple) else character_set
    letters = st.text(st.sampled_from(ALPHABETS[character_set]), max_size=16).map(str.strip)
    for keyword in draw(st.sets(st.sampled_from([*TEXTS, "AccessionNumber"]))):
        setattr(dataset, keyword, draw(letters))
    for keyword in draw(st.sets(st.sampled_from(NUMBERS))):
        setattr(dataset, keyword, draw(st.integers(0, 10**6)))
    for keyword in draw(st.sets(st.sampled_from(UIDS))):
        setattr(dataset, keyword, draw(st.from_regex(r"[1-9]{1,5}(\.[1-9]{1,5}){1,8}", fullmatch=True)))
    if draw(st.booleans()):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Modality = draw(st.sampled_from(["MR", "CT"]))
    if draw(st.booleans()):
        dataset.Rows = draw(st.integers(0, 65535))
        dataset.FrameIncrementPointer = 0x00181063
    for tag in draw(st.sets(st.sampled_from([0x00081110, 0x00081115, 0x00182208, 0x00209221]))):
        dataset.add_new(tag, "SQ", Sequence(draw(st.lists(nested(), max_size=3))))
        dataset[tag].is_undefined_length = draw(st.booleans())
    if draw(st.booleans()):
        dataset.add_new(0x00091001, "UN", draw(st.binary(max_size=3000)))
        dataset.add_new(0x00191001, "OB", draw(st.binary(max_size=100)))
    if draw(st.booleans()):
        dataset.add_new(0x7FE00010, "OW", bytes(2 * draw(st.integers(0, 3000))))
    return dataset
