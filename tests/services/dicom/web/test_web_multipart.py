"""The multipart reader: the same parts however the body is cut, bounded memory, and no cut-off body is a whole one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.errors import InputError
from clara_flow.services.dicom.web_multipart import (
    LARGEST_HEAD_BYTES,
    MultipartReader,
    PartBegin,
    PartEnd,
    boundary_of,
    parts,
)

BOUNDARY = "b0undary"
KIND = "application/dicom"
# Contents that look like delimiters, or like the beginning of one.
TRICKY = st.lists(
    st.sampled_from(
        [b"\r\n", b"--", BOUNDARY.encode(), b"\r", b"\n", b"-", b"x", b" ", b"\r\n--" + BOUNDARY.encode()[:4]]
    ),
    max_size=12,
).map(b"".join)
CONTENTS = st.lists(st.binary(max_size=80) | TRICKY, max_size=4).filter(
    lambda contents: all(f"\r\n--{BOUNDARY}".encode() not in b"\r\n" + content + b"\r\n" for content in contents)
)


def body_of(contents: list[bytes]) -> bytes:
    return b"".join(parts(BOUNDARY, [(KIND, iter([content])) for content in contents]))


def read(pieces: list[bytes], boundary: str = BOUNDARY) -> list[bytes]:
    """The contents of the parts of a body that comes in these pieces."""
    reader, found, whole = MultipartReader(boundary), [], 0
    for piece in pieces:
        for event in reader.feed(piece):
            if isinstance(event, PartBegin):
                assert event.headers == {"content-type": KIND}
                found.append(b"")
            elif isinstance(event, PartEnd):
                whole += 1
            else:
                found[-1] += event
    reader.close()
    assert whole == len(found)
    return found


@given(CONTENTS, st.data())
def test_the_parts_are_the_same_however_the_body_is_cut(contents: list[bytes], data: st.DataObject) -> None:
    body = body_of(contents)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=20)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(pieces) == contents
    assert read([body[at : at + 1] for at in range(len(body))]) == contents


@given(CONTENTS, st.data())
def test_a_body_that_was_cut_off_is_refused(contents: list[bytes], data: st.DataObject) -> None:
    body = body_of(contents)[:-4]  # without the last `--` and line end there is no last delimiter
    with pytest.raises(InputError):
        read([body[: data.draw(st.integers(0, len(body)))]])


@given(st.binary(max_size=300))
def test_rubbish_is_refused_or_read_but_breaks_nothing(rubbish: bytes) -> None:
    reader = MultipartReader(BOUNDARY)
    try:
        list(reader.feed(rubbish))
        list(reader.feed(b"\r\n--" + BOUNDARY.encode() + rubbish))
        reader.close()
    except InputError:
        pass


def test_preamble_epilogue_padding_and_a_lookalike_are_no_parts() -> None:
    mark = BOUNDARY.encode()
    content = b"1\r\n--" + mark + b"2\r\n"
    body = b"hello\r\n--" + mark + b" \t\r\ncontent-type: application/dicom\r\n\r\n" + content
    body += b"\r\n--" + mark + b"--\r\nbye --" + mark
    assert read([body]) == [content]


def test_memory_is_bounded() -> None:
    reader = MultipartReader(BOUNDARY)
    list(reader.feed(f"--{BOUNDARY}\r\n\r\n".encode()))
    for _ in range(50):
        list(reader.feed(b"\r" * 65_536))
        assert len(reader._kept) < 100


def test_headers_without_end_are_refused() -> None:
    reader = MultipartReader(BOUNDARY)
    with pytest.raises(InputError):
        list(reader.feed(f"--{BOUNDARY}\r\n".encode() + b"x" * (LARGEST_HEAD_BYTES + 1)))


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', "abc"),
        ("Multipart/Related;boundary=\"a b:c\";type='x'", "a b:c"),
    ],
)
def test_the_boundary_is_found(header: str, boundary: str) -> None:
    assert boundary_of(header) == boundary


@pytest.mark.parametrize(
    "header",
    ["", "application/dicom", "multipart/related", "multipart/form-data; boundary=a", "multipart/related; boundary="],
)
def test_no_boundary_is_refused(header: str) -> None:
    with pytest.raises(InputError):
        boundary_of(header)
