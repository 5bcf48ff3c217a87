"""The header scanner sees what pydicom sees, however the data set is encoded and cut."""

from __future__ import annotations

import contextlib
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import chain, repeat
from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filereader import _read_file_meta_info, read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian
from services.dicom.foreign_files import foreign_files
from services.dicom.spool.data_sets import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    KEYS,
    SYNTAXES,
    data_sets,
    encoded,
    example,
    in_pieces,
)

from clara_flow.records.dicom_lines import digest
from clara_flow.services.dicom.header import RULE_ATTRIBUTES, HeaderScanner
from clara_flow.services.dicom.header_elements import DEPTH_LIMIT, ELEMENT_LIMIT, VALUE_LIMIT
from clara_flow.services.dicom.journal_entries import InstanceFacts


def scanned(content: bytes, syntax: str, sizes: Iterator[int] | None = None) -> HeaderScanner:
    """A scanner that was given all of it."""
    scanner = HeaderScanner(syntax, KEYS)
    for piece in in_pieces(content, sizes or repeat(len(content))):
        if scanner.feed(piece):
            break
    scanner.finish()
    return scanner


def shown(value: object) -> str:
    """A value of pydicom's as a rule sees it."""
    if isinstance(value, MultiValue):
        return "\\".join(str(part).strip(" \0") for part in value)
    return "" if value is None else str(value).strip(" \0")


def by_pydicom(content: bytes, syntax: str) -> InstanceFacts:
    """The facts as pydicom says them."""
    if syntax == DEFLATED:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content)
    dataset = read_dataset(BytesIO(content), syntax == IMPLICIT, syntax != BIG_ENDIAN)

    def text(tag: str | int) -> str:
        return shown(dataset[tag].value) if tag in dataset else ""

    keys = {"00100020": text("PatientID"), "00080050": text("AccessionNumber"), "0020000D": text("StudyInstanceUID")}
    keys["00280010"] = text("Rows")
    if "FrameIncrementPointer" in dataset:
        keys["00280009"] = f"{int(dataset.FrameIncrementPointer):08X}"
    return InstanceFacts(
        sop_class=text("SOPClassUID"),
        sop_instance=text("SOPInstanceUID"),
        study=text("StudyInstanceUID"),
        series=text("SeriesInstanceUID"),
        transfer_syntax=syntax,
        attributes={keyword: text(keyword) for keyword in RULE_ATTRIBUTES if text(keyword)},
        keys={tag: digest(value) for tag, value in keys.items() if value},
    )


@given(data_sets(), st.sampled_from(SYNTAXES), st.lists(st.integers(1, 3000), min_size=1, max_size=20))
def test_it_says_what_pydicom_says(dataset: Dataset, syntax: str, sizes: list[int]) -> None:
    content = encoded(dataset, syntax)
    scanner = scanned(content, syntax, chain(sizes, repeat(sizes[-1])))
    assert scanner.facts == by_pydicom(content, syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_wherever_it_is_cut(syntax: str) -> None:
    content = encoded(example(), syntax)
    expected = by_pydicom(content, syntax)
    for cut in range(1, len(content)):
        scanner = scanned(content, syntax, chain([cut], repeat(len(content))))
        assert scanner.facts == expected, cut
    for size in range(1, 40):
        scanner = scanned(content, syntax, repeat(size))
        assert scanner.facts == expected, size


@pytest.mark.parametrize("path", [file.path for file in foreign_files()], ids=lambda path: path.name)
def test_foreign_files(path: Path) -> None:
    content = path.read_bytes()
    file = BytesIO(content)
    try:
        read_preamble(file, force=False)
        syntax = _read_file_meta_info(file).TransferSyntaxUID
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception:  # noqa: BLE001 - broken on purpose: then the scanner must only not break
        with contextlib.suppress(ValueError):
            scanned(content, ExplicitVRLittleEndian, repeat(1000))
        return
    scanner = scanned(content[file.tell() :], syntax, repeat(1000))
    found = scanner.facts
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        names = {"SOPClassUID": "sop_class", "SOPInstanceUID": "sop_instance", "StudyInstanceUID": "study"}
        assert getattr(found, names.get(keyword, "series")) == shown(dataset.get(keyword)), keyword
    with warnings.catch_warnings(action="ignore"):
        for keyword in RULE_ATTRIBUTES:
            assert found.attributes.get(keyword, "") == shown(dataset.get(keyword)), keyword
    assert ("00100020" in found.keys) == bool(shown(dataset.get("PatientID")))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_it_stops_as_soon_as_it_can(syntax: str) -> None:
    content = encoded(example(), syntax)
    scanner = HeaderScanner(syntax)
    fed = next(at for at in range(len(content)) if scanner.feed(content[at : at + 1]))
    rows = content.index(b"\x28\x00\x10\x00" if syntax != BIG_ENDIAN else b"\x00\x28\x00\x10")
    assert fed == rows + 7  # the head of the first element that nobody asks for
    assert scanner.is_done
    assert scanner.feed(b"whatever follows")
    scanner.finish()


def test_keys_may_lie_behind_what_is_always_wanted() -> None:
    dataset = example()
    dataset.add_new(0x00400001, "AE", "LATE")
    facts = HeaderScanner(EXPLICIT, ["00400001"])
    facts.feed(encoded(dataset, EXPLICIT))
    assert facts.facts.keys["00400001"] == digest("LATE")
    behind_pixels = HeaderScanner(EXPLICIT, ["FFFAFFFA"])
    assert behind_pixels.feed(encoded(dataset, EXPLICIT))


def test_no_patient_is_in_what_it_says() -> None:
    dataset = example()
    dataset.PatientName, dataset.AccessionNumber = "Geheim^Ganz", "ACC-1"
    scanner = HeaderScanner(EXPLICIT)
    scanner.feed(encoded(dataset, EXPLICIT))
    said = repr(scanner.facts)
    assert scanner.facts.keys == {"00100020": digest("Müller")}
    for secret in ("Müller", "Geheim", "ACC-1"):
        assert secret not in said


def test_one_patient_has_one_key_in_every_character_set() -> None:
    found = set()
    for character_set in ("ISO_IR 100", "ISO_IR 192", "GB18030"):
        dataset = example()
        dataset.SpecificCharacterSet = character_set
        for syntax in SYNTAXES:
            found.add(scanned(encoded(dataset, syntax), syntax).facts.keys["00100020"])
    assert found == {digest("Müller")}


def test_an_empty_patient_id_is_no_key() -> None:
    dataset = example()
    dataset.PatientID = ""
    assert "00100020" not in scanned(encoded(dataset, EXPLICIT), EXPLICIT).facts.keys


def test_a_long_value_is_as_good_as_none() -> None:
    for length, kept in ((VALUE_LIMIT, True), (VALUE_LIMIT + 2, False)):
        dataset = example()
        dataset.add_new(0x0008103E, "UT", "x" * length)
        found = scanned(encoded(dataset, EXPLICIT), EXPLICIT, repeat(700)).facts
        assert ("SeriesDescription" in found.attributes) is kept
        assert found.series == "1.2.5"


def test_a_text_that_its_character_set_does_not_have() -> None:
    dataset = example()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    content = encoded(dataset, EXPLICIT)
    dataset.add_new(0x0008103E, "LO", "ae")
    content = encoded(dataset, EXPLICIT).replace(b"LO\x02\x00ae", b"LO\x02\x00\xe4\xff")
    assert scanned(content, EXPLICIT).facts.attributes["SeriesDescription"] == "��"
    unknown = content.replace(b"ISO_IR 192", b"ISO_IR 999")
    assert scanned(unknown, EXPLICIT).facts.attributes["SeriesDescription"] == "äÿ"


def test_no_text_has_a_nul() -> None:
    content = encoded(example(), EXPLICIT).replace(b"1.2.4\0", b"1\x002.4\0")
    assert scanned(content, EXPLICIT).facts.study == "12.4"


def test_writers_that_break_their_word_on_vrs() -> None:
    """As pydicom does: the first element shows the encoding of a data set, and of each item."""
    for syntax, other in ((EXPLICIT, IMPLICIT), (IMPLICIT, EXPLICIT)):
        assert scanned(encoded(example(), other), syntax).facts.study == "1.2.4"
    inner = Dataset()
    inner.add_new(0x00091001, "OB", bytes(0x4141))  # a length that looks like the VR "AA"
    inner.ReferencedSOPInstanceUID = "9.9"
    item = encoded(inner, IMPLICIT)
    unknown = b"\x09\x00\x02\x10UN\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    unknown += b"\x08\x00\x00\x00\x04\x00\x00\x00abcd" + item
    unknown += b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    content = encoded(example(), EXPLICIT)
    at = content.index(b"\x10\x00\x20\x00")
    assert scanned(content[:at] + unknown + content[at:], EXPLICIT, repeat(100)).facts.study == "1.2.4"


def test_an_encapsulated_icon_is_passed_over() -> None:
    icon = Dataset()
    icon.add_new(0x7FE00010, "OB", b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0\x04\0\0\0\1\2\3\4")
    icon["PixelData"].is_undefined_length = True
    dataset = example()
    dataset.add_new(0x00091110, "SQ", Sequence([icon]))
    dataset[0x00091110].is_undefined_length = True
    assert scanned(encoded(dataset, EXPLICIT), EXPLICIT, repeat(7)).facts.study == "1.2.4"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_data_set_that_ends_within_an_element(syntax: str) -> None:
    dataset = example()
    for keyword in ("Rows", "Columns", "PixelData"):
        del dataset[keyword]
    content = encoded(dataset, syntax)
    scanner = HeaderScanner(syntax)
    scanner.feed(content)
    scanner.finish()
    with pytest.raises(ValueError, match="ends within"):
        scanned(content[:-4], syntax)


def test_a_deep_nest_is_refused_and_costs_nothing() -> None:
    sequence = b"\x08\x00\x10\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    begin = b"\x08\x00\x00\x00\x04\x00\x00\x00abcd"
    HeaderScanner(IMPLICIT).feed(begin + sequence * DEPTH_LIMIT)
    with pytest.raises(ValueError, match="sequences within each other"):
        HeaderScanner(IMPLICIT).feed(begin + sequence * (DEPTH_LIMIT + 1))
    with pytest.raises(ValueError, match="sequences within each other"):
        scanned(begin + sequence * 10_000, IMPLICIT, repeat(5))


def test_memory_is_flat() -> None:
    scanners = [HeaderScanner(syntax) for syntax in (EXPLICIT, IMPLICIT)]
    many = encoded(example(), EXPLICIT)[:100]
    scanners[0].feed(many[: many.index(b"1.2.3") + 6])
    piece = bytes(1000)
    tracemalloc.start()
    try:
        scanners[0].feed(b"\x09\x00\x01\x10UN\0\0\0\0\x80\0")  # 8 MiB of a private attribute
        for _ in range(8 * 1024):
            scanners[0].feed(piece)
        for _ in range(500):  # and many small ones
            scanners[1].feed(b"\x08\x00\x16\x00\x04\x00\x00\x001.2\0" * 50 + b"\x08")
            scanners[1].feed(b"\x00\x16\x00\x04\x00\x00\x001.2\0")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * 1024


def test_a_bomb_is_given_up() -> None:
    """Deflated to a thousandth: one value without end, and elements without end."""
    deflater = zlib.compressobj(level=9, wbits=-zlib.MAX_WBITS)
    bomb = deflater.compress(b"\x09\x00\x01\x10UN\0\0\xfe\xff\xff\xff")
    zeros = bytes(2**20)
    bomb += b"".join(deflater.compress(zeros) for _ in range(70)) + deflater.flush()
    assert len(bomb) < 2**17
    with pytest.raises(ValueError, match="inflates to more than"):
        HeaderScanner(DEFLATED).feed(bomb)
    bomb = zlib.compress(b"\x08\x00\x00\x00UL\0\0" * (ELEMENT_LIMIT + 1), wbits=-zlib.MAX_WBITS)
    with pytest.raises(ValueError, match="more than 250000 elements"):
        HeaderScanner(DEFLATED).feed(bomb)


def test_a_key_that_is_no_tag() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        HeaderScanner(EXPLICIT, ["PatientID"])
