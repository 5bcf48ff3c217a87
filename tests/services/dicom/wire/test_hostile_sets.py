"""Data sets and titles that want to harm, from the wire: refused, or kept as they are, in the spool, in flat memory."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import (
    EXPLICIT,
    IMPLICIT,
    MR,
    associate_rq,
    context,
    data_pdu,
    data_set,
    store_rq,
)

from clara_flow.services.dicom.header import INFLATED_LIMIT
from clara_flow.services.dicom.listener_config import ListenerConfig

DEFLATED = "1.2.840.10008.1.2.1.99"
MIB = 2**20
NAME = re.compile(r"spool/(config\.json|(slots|journals|instances)(/[0-9a-z.-]+)+)|heartbeats/[a-z0-9.-]+")


def names(tmp_path: Path) -> list[str]:
    return [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]


def deflated(head: bytes, mib: int, tail: bytes = b"") -> bytes:
    """`head`, so many MiB of zeros, `tail`, deflated (PS3.5 Annex A.5)."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [deflater.compress(head), *(deflater.compress(bytes(MIB)) for _ in range(mib)), deflater.compress(tail)]
    return b"".join([*pieces, deflater.flush()])


def send(listening: Listening, data: bytes, syntax: str, *, sop_instance: str = "1.2.3.1") -> int:
    """In PDUs that the listener takes; the status."""
    with listening.peer() as peer:
        peer.associate(context(1, MR, syntax))
        peer.send(data_pdu(1, store_rq(sop_instance=sop_instance), command=True))
        pieces = [data[at : at + 16_000] for at in range(0, len(data), 16_000)]
        for number, piece in enumerate(pieces, start=1):
            peer.send(data_pdu(1, piece, command=False, last=number == len(pieces)))
        return peer.read_status()


def test_a_deflated_bomb(listen: Callable[..., Listening], tmp_path: Path) -> None:
    """Before what is looked for it is given up, behind that it is kept and not inflated."""
    listening, process = listen(), psutil.Process()
    long = (2**31).to_bytes(4, "little")
    begin = data_set()
    first = begin.index(b"\x10\x00\x20\x00LO")  # Patient ID
    pixels = begin.index(b"\xe0\x7f\x10\x00")
    mib = INFLATED_LIMIT // MIB + 200
    length = (mib * MIB).to_bytes(4, "little")
    before = deflated(begin[:first] + b"\x09\x00\x10\x10OB\0\0" + length, mib, begin[first:])
    behind = deflated(begin[:pixels] + b"\xe0\x7f\x10\x00OB\0\0" + length, mib)
    endless = deflated(begin[:first] + b"\x09\x00\x10\x10OB\0\0" + long, mib)
    resident = process.memory_info().rss
    assert send(listening, before, DEFLATED) == 0xC000
    assert send(listening, endless, DEFLATED) == 0xC000
    assert send(listening, behind, DEFLATED) == 0
    assert process.memory_info().rss - resident < 64 * MIB
    assert listening.data_sets() == [behind]
    assert all(NAME.fullmatch(name) for name in names(tmp_path))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_ten_thousand_sequences_within_each_other(listen: Callable[..., Listening], syntax: str) -> None:
    listening = listen()
    data = data_set(syntax)
    at = data.index(b"\x10\x00\x20\x00")
    head = b"\x08\x00\x40\x11" + (b"SQ\0\0" if syntax == EXPLICIT else b"") + b"\xff" * 4
    nest = (head + b"\xfe\xff\x00\xe0" + b"\xff" * 4) * 10_000
    assert send(listening, data[:at] + nest + data[at:], syntax) == 0xC000
    assert send(listening, data, syntax) == 0
    assert listening.data_sets() == [data]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_attribute_is_a_path(listen: Callable[..., Listening], tmp_path: Path) -> None:
    listening = listen()
    for value in ("../../../../tmp/x", "..", "/etc/passwd", "..\\x", "1.2/../x", "x" * 60, "\\..\\.."):
        for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            is_instance = keyword == "SOPInstanceUID"
            uid = value if is_instance else "1.2.3.1"
            status = send(listening, data_set(**{keyword: value}), EXPLICIT, sop_instance=uid)
            assert status in ({0xA900, 0xC000, 0x0117} if is_instance else {0, 0xA900}), hex(status)
    assert all(NAME.fullmatch(name) for name in names(tmp_path)), names(tmp_path)


def test_no_title_is_a_path(listen: Callable[..., Listening], config: ListenerConfig, tmp_path: Path) -> None:
    listening = listen(config=config, reject_unknown_sources=False)
    for title in (b"../../x", b"/etc/passwd", b"..", b"BRAIN/../..", b"\xff\xfe", b"BRAIN\0x", b"%2e%2e"):
        with listening.peer() as peer:
            peer.send(associate_rq(called=title))
            assert peer.read_pdu()[:1] == b"\x03"
        with listening.peer() as peer:
            peer.send(associate_rq(calling=title))
            if peer.read_pdu()[:1] == b"\x02":
                assert peer.store(store_rq(), data_set()) == 0
                peer.release()
    assert all(NAME.fullmatch(name) for name in names(tmp_path)), names(tmp_path)
