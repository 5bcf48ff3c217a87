"""Payload collections: how an entry is found, and what a wrong name is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.operators.sdk import DriverError, PayloadCollection, PayloadEntry

READER = PayloadEntry("volume", "/a", source="reader")
OTHER = PayloadEntry("volume", "/b", source="registration")
WHOLE = PayloadEntry("", "/c", source="parser")
STUDY = PayloadEntry("", "/d")

words = st.text("abcXYZ019-_", max_size=5)
entries = st.lists(
    st.builds(PayloadEntry, words, st.just("/x"), words), max_size=6, unique_by=lambda entry: entry.keys[0].casefold()
)


def test_an_entry_is_found_by_position_and_by_name_without_case() -> None:
    inputs = PayloadCollection("input", [READER, WHOLE, STUDY])
    assert inputs[0] is READER
    assert inputs[-1] is STUDY
    assert inputs["VOLUME"] is inputs["Reader.Volume"] is READER
    assert inputs["parser"] is WHOLE
    assert list(inputs) == [READER, WHOLE, STUDY]
    assert len(inputs) == 3


def test_the_payload_is_the_input_without_a_name() -> None:
    assert PayloadCollection("input", [WHOLE, STUDY])[""] is STUDY


def test_membership_asks_for_names() -> None:
    inputs = PayloadCollection("input", [READER, OTHER])
    assert "volume" in inputs
    assert "registration.VOLUME" in inputs
    assert "mask" not in inputs
    assert 0 not in inputs


def test_an_ambiguous_name_is_told_apart_by_the_upstream() -> None:
    inputs = PayloadCollection("input", [READER, OTHER])
    with pytest.raises(KeyError, match=r"ambiguous.*'reader.volume', 'registration.volume'"):
        inputs["volume"]
    assert inputs["registration.volume"] is OTHER


def test_an_unknown_name_or_position_names_what_there_is() -> None:
    inputs = PayloadCollection("input", [READER, WHOLE])
    with pytest.raises(KeyError, match=r"no input 'mask'; there are 'reader.volume', 'parser'"):
        inputs["mask"]
    with pytest.raises(IndexError, match="no input at position 2; there are"):
        inputs[2]


def test_an_empty_collection_says_how_to_give_it_a_folder() -> None:
    with pytest.raises(IndexError, match="NVIDIA_CLARA_OUTPUT"):
        PayloadCollection("output", [])[0]


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (PayloadEntry("", "/a"), PayloadEntry("", "/b"), "two outputs without a name"),
        (PayloadEntry("mask", "/a"), PayloadEntry("MASK", "/b"), "two outputs named 'MASK'"),
        (PayloadEntry("", "/a", "reader"), PayloadEntry("", "/b", "reader"), "two outputs named 'reader'"),
    ],
)
def test_entries_that_cannot_be_told_apart_are_refused(first: PayloadEntry, second: PayloadEntry, told: str) -> None:
    with pytest.raises(DriverError, match=told):
        PayloadCollection("output", [first, second])


@given(entries)
def test_every_entry_is_found_by_its_first_key(some: list[PayloadEntry]) -> None:
    collection = PayloadCollection("input", some)
    assert [collection[entry.keys[0].swapcase()] for entry in some] == some
    assert all(entry.name in collection for entry in some)
