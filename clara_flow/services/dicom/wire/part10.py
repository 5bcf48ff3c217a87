"""The head of a DICOM file (PS3.10 section 7.1) that goes before a data set as it came from the network."""

from __future__ import annotations

import struct

from clara_flow.services.dicom.wire.negotiation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

PREAMBLE = bytes(128) + b"DICM"
SHORT = struct.Struct("<HH2sH")  # Explicit VR Little Endian: group, element, VR, length
LONG = struct.Struct("<HH2sxxI")


def file_head(sop_class: str, sop_instance: str, transfer_syntax: str, calling: str) -> bytes:
    """Preamble and file meta information.

    calling     the AE title that sent it (0002,0016); left out where it is none.
    """
    elements = [
        LONG.pack(2, 0x0001, b"OB", 2) + b"\x00\x01",  # version
        _text(0x0002, b"UI", sop_class, b"\0"),
        _text(0x0003, b"UI", sop_instance, b"\0"),
        _text(0x0010, b"UI", transfer_syntax, b"\0"),
        _text(0x0012, b"UI", IMPLEMENTATION_CLASS_UID, b"\0"),
        _text(0x0013, b"SH", IMPLEMENTATION_VERSION, b" "),
    ]
    if calling.isascii():
        elements.append(_text(0x0016, b"AE", calling, b" "))
    meta = b"".join(elements)
    return PREAMBLE + SHORT.pack(2, 0x0000, b"UL", 4) + struct.pack("<I", len(meta)) + meta


def _text(element: int, vr: bytes, text: str, padding: bytes) -> bytes:
    value = text.encode("ascii")
    value += padding * (len(value) % 2)
    return SHORT.pack(2, element, vr, len(value)) + value
