"""References of storage commitment: what pydicom writes is read as pydicom reads it; nothing breaks the reader."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from clara_flow.services.dicom.wire import references
from clara_flow.services.dicom.wire.contexts import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE
from clara_flow.services.dicom.wire.references import Content, Named, read_references

SYNTAXES = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG)
uids = st.from_regex(r"[1-9](\.[1-9][0-9]{0,6}){1,6}", fullmatch=True)
items = st.lists(st.tuples(uids, uids, st.integers(0, 0xFFFF)), max_size=5)


def written(dataset: Dataset, syntax: str) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def reference(sop_class: str, sop_instance: str, reason: int | None, *, is_long: bool, extra: bool) -> Dataset:
    item = Dataset()
    item.is_undefined_length_sequence_item = is_long
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    if reason is not None:
        item.FailureReason = reason
    if extra:
        inner = Dataset()
        inner.ReferencedSOPInstanceUID = "9.9.9"
        item.RequestAttributesSequence = [inner, inner]
        item["RequestAttributesSequence"].is_undefined_length = is_long
    return item


@given(st.sampled_from(SYNTAXES), uids, items, items, st.booleans(), st.booleans(), st.booleans())
def test_what_is_written_is_read(
    syntax: str,
    transaction: str,
    safe: list[tuple[str, str, int]],
    failed: list[tuple[str, str, int]],
    long_items: bool,
    long_sequences: bool,
    extra: bool,
) -> None:
    dataset = Dataset()
    dataset.TransactionUID, dataset.RetrieveAETitle = transaction, "PACS"
    dataset.ReferencedSOPSequence = [reference(*one[:2], None, is_long=long_items, extra=extra) for one in safe]
    dataset.FailedSOPSequence = [reference(*one, is_long=long_items, extra=extra) for one in failed]
    for keyword in ("ReferencedSOPSequence", "FailedSOPSequence"):
        dataset[keyword].is_undefined_length = long_sequences
    assert read_references(written(dataset, syntax), syntax) == Content(
        transaction,
        [Named(sop_class, uid, references.PROCESSING_FAILURE) for sop_class, uid, _ in safe],
        [Named(*one) for one in failed],
    )


@given(st.binary(max_size=200), st.sampled_from(SYNTAXES))
@example(b"\x08\x00\x99\x11\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 40, IMPLICIT_LITTLE)
def test_nothing_breaks_it(data: bytes, syntax: str) -> None:
    try:
        content = read_references(data, syntax)
    except ValueError:
        return
    assert isinstance(content, Content)


@given(st.data(), st.sampled_from(SYNTAXES))
def test_what_is_cut_is_never_taken_for_whole(data: st.DataObject, syntax: str) -> None:
    dataset = Dataset()
    dataset.TransactionUID = "1.2.3"
    dataset.ReferencedSOPSequence = [reference("1.2", f"1.2.{n}", None, is_long=False, extra=True) for n in range(3)]
    whole = written(dataset, syntax)
    cut = whole[: data.draw(st.integers(20, len(whole) - 1))]
    try:
        content = read_references(cut, syntax)
    except ValueError:
        return
    assert not content.referenced, "only the transaction was there"


def many(count: int) -> bytes:
    """A request of so many references, Implicit VR Little Endian."""

    def element(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value

    item = element(references.SOP_CLASS, b"1.2.840.10008.5.1.4.1.1.4\0") + element(references.SOP_INSTANCE, b"1.2.3\0")
    sequence = element(0xFFFE_E000, item) * count
    return element(references.TRANSACTION, b"1.2.9\0") + element(references.REFERENCED, sequence)


def test_the_number_of_references_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MAXIMUM_REFERENCES", 10)
    assert len(read_references(many(10), IMPLICIT_LITTLE).referenced) == 10
    with pytest.raises(ValueError, match="more than 10 references"):
        read_references(many(11), IMPLICIT_LITTLE)


def test_a_long_one_takes_little_memory() -> None:
    data = many(20_000)
    tracemalloc.start()
    try:
        content = read_references(data, IMPLICIT_LITTLE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(content.referenced) == 20_000
    assert peak < 20_000 * 400
