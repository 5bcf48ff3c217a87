"""What stands before the data set in a DICOM file (PS3.10 section 7.1), so that the rest is kept as it came."""

from __future__ import annotations

import struct
from functools import lru_cache

from clara_flow.services.dicom import implementation

PREAMBLE = bytes(128) + b"DICM"
UID_LENGTH = 64
AE_LENGTH = 16

SHORT = struct.Struct("<HH2sH")  # Explicit VR Little Endian: group, element, VR, length (PS3.5 section 7.1.2)
LONG = struct.Struct("<HH2sxxI")


def file_head(sop_class: str, sop_instance: str, transfer_syntax: str, calling_ae: str) -> bytes:
    """Preamble, prefix and File Meta Information of one instance.

    calling_ae      who sent it: Source and Sending Application Entity Title; left out when it is no AE title.

    Raises ValueError for what is no UID by its length or characters (PS3.5 section 6.2).
    """
    meta = b"".join(
        [
            LONG.pack(2, 0x0001, b"OB", 2) + b"\x00\x01",  # version
            _uid(0x0002, sop_class),
            _uid(0x0003, sop_instance),
            _rest(transfer_syntax, calling_ae),
        ]
    )
    return PREAMBLE + SHORT.pack(2, 0x0000, b"UL", 4) + struct.pack("<I", len(meta)) + meta


@lru_cache(maxsize=256)
def _rest(transfer_syntax: str, calling_ae: str) -> bytes:
    """What is the same for all instances of an association."""
    elements = [
        _uid(0x0010, transfer_syntax),
        _uid(0x0012, implementation.CLASS_UID),
        _text(0x0013, b"SH", implementation.VERSION_NAME, b" "),
    ]
    title = calling_ae.strip(" \0")
    if 0 < len(title) <= AE_LENGTH and title.isascii() and title.isprintable() and "\\" not in title:
        elements += [_text(0x0016, b"AE", title, b" "), _text(0x0017, b"AE", title, b" ")]
    return b"".join(elements)


def _uid(element: int, uid: str) -> bytes:
    uid = uid.strip(" \0")
    if not 0 < len(uid) <= UID_LENGTH or not set(uid) <= set("0123456789."):
        raise ValueError("this is no UID")
    return _text(element, b"UI", uid, b"\0")


def _text(element: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii")
    value += padding * (len(value) % 2)
    return SHORT.pack(2, element, vr, len(value)) + value
