"""Values of DICOM attributes as text, whatever character set and byte order they came in (PS3.5 section 6)."""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import lru_cache

from pydicom.charset import decode_bytes, python_encoding
from pydicom.valuerep import TEXT_VR_DELIMS

# The bytes of one number, and how `struct` calls it (PS3.5 Table 6.2-1).
NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
CHARACTER_SET_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})  # others are ASCII
ESCAPE = b"\x1b"
LATIN_1 = "latin-1"


def as_text(value: bytes, vr: str, *, character_set: bytes, big_endian: bool) -> str:
    """A value without its padding; several are separated by backslashes. Never with a NUL: PostgreSQL takes none.

    vr              of the dictionary; values of binary ones other than numbers and tags are taken for Latin-1.
    character_set   the value of Specific Character Set (0008,0005).
    """
    if vr in NUMBERS or vr == "AT":
        return "\\".join(_numbers(value, vr, ">" if big_endian else "<"))
    text = _decoded(value, character_set) if vr in CHARACTER_SET_VRS else value.decode(LATIN_1)
    return "\\".join(part.strip(" \0") for part in text.split("\\")).replace("\0", "")


def _numbers(value: bytes, vr: str, order: str) -> list[str]:
    if vr == "AT":
        pairs = struct.iter_unpack(f"{order}HH", value[: len(value) // 4 * 4])
        return [f"{group:04X}{element:04X}" for group, element in pairs]
    form = struct.Struct(order + NUMBERS[vr])
    return [str(number) for (number,) in form.iter_unpack(value[: len(value) // form.size * form.size])]


def _decoded(value: bytes, character_set: bytes) -> str:
    if value.isascii() and ESCAPE not in value:
        return value.decode("ascii")
    encodings = _encodings(character_set)
    if ESCAPE in value and len(encodings) > 1:  # code extensions (PS3.5 section 6.1.2.5)
        with suppress(LookupError, ValueError):
            return decode_bytes(value, encodings, TEXT_VR_DELIMS)
    return value.decode(encodings[0], "replace")


@lru_cache(maxsize=64)
def _encodings(character_set: bytes) -> tuple[str, ...]:
    """Python's names. pydicom is not shown unknown ones: it would write them to the log, whatever stands there."""
    names = [name.strip(" \0") for name in character_set.decode(LATIN_1).split("\\")]
    return tuple(python_encoding.get(name, LATIN_1) for name in names)
