"""Whatever comes, the header scanner ends, and raises nothing but ValueError.

SOAK=n takes n times as many mutants.
"""

from __future__ import annotations

import os
import random
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from services.dicom.spool.data_sets import KEYS, SYNTAXES, data_sets, encoded, example, in_pieces

from clara_flow.services.dicom.header import HeaderScanner

pytestmark = pytest.mark.filterwarnings("ignore:(Found unknown escape|Failed to decode byte)")  # pydicom's
MUTANTS = 2_500 * int(os.environ.get("SOAK", "1"))  # of each transfer syntax
HEADS = [
    b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x0d\xe0\x00\x00\x00\x00", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",
    b"\x08\x00\x10\x11SQ\x00\x00\xff\xff\xff\xff", b"\x09\x00\x10\x11\xff\xff\xff\xff", b"\xff\xff\xff\xff",
    b"\x08\x00\x05\x00CS\x04\x00\x1b$B\\",
]  # fmt: skip


def survives(content: bytes, syntax: str, size: int) -> None:
    """It is scanned to an end, or refused; what was found can be said either way."""
    scanner = HeaderScanner(syntax, KEYS)
    try:
        for piece in in_pieces(content, repeat(size)):
            scanner.feed(piece)
        scanner.finish()
    except ValueError:
        pass
    facts = scanner.facts
    assert "\0" not in repr([facts.study, facts.attributes])
    str(facts.attributes).encode()


@given(st.binary(max_size=400), st.sampled_from([*SYNTAXES, "", "1.2"]), st.integers(1, 50))
def test_garbage(content: bytes, syntax: str, size: int) -> None:
    survives(content, syntax, size)


@given(st.lists(st.one_of(st.sampled_from(HEADS), st.binary(max_size=12)), max_size=40), st.sampled_from(SYNTAXES))
def test_garbage_that_looks_like_elements(heads: list[bytes], syntax: str) -> None:
    survives(b"".join(heads), syntax, 16)


@given(data_sets(), st.sampled_from(SYNTAXES), st.data())
def test_one_encoding_taken_for_another(dataset: Dataset, syntax: str, data: st.DataObject) -> None:
    survives(encoded(dataset, syntax), data.draw(st.sampled_from(SYNTAXES)), data.draw(st.integers(1, 500)))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_mutants(syntax: str) -> None:
    dice = random.Random(syntax)  # noqa: S311
    dataset = example()
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.StudyDescription = "Kopf 山田太郎"
    whole = encoded(dataset, syntax)
    for _ in range(MUTANTS):
        content = bytearray(whole)
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(content) + 1)
            match dice.randrange(4):
                case 0:
                    content[at : at + 1] = bytes([dice.randrange(256)])
                case 1:
                    content[at : at + dice.randrange(20)] = b""
                case 2:
                    content[at:at] = dice.choice(HEADS)
                case _:
                    content[at : at + 4] = dice.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
        survives(bytes(content), syntax, dice.choice([1, 7, 100, 10_000]))
