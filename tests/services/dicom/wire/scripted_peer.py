"""A DICOM peer that says exactly the bytes it is told to, and the bytes of well-formed PDUs and messages."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from types import TracebackType

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

VERIFICATION = "1.2.840.10008.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
CT = "1.2.840.10008.5.1.4.1.1.2"
COMMITMENT = "1.2.840.10008.1.20.1"
PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"

RELEASE_RQ = bytes.fromhex("05 00 00000004 00000000")
RELEASE_RP = bytes.fromhex("06 00 00000004 00000000")
ABORT = bytes.fromhex("07 00 00000004 00000000")


def item(kind: int, value: bytes) -> bytes:
    """An item of an association request."""
    return struct.pack(">BxH", kind, len(value)) + value


def context(number: int, abstract: str, *syntaxes: str) -> bytes:
    """A proposed presentation context."""
    body = bytes((number, 0, 0, 0)) + item(0x30, abstract.encode())
    return item(0x20, body + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes))


def user_information(*more: bytes, maximum: int = 16_384) -> bytes:
    """Maximum length, implementation class, and other sub-items."""
    return item(0x50, item(0x51, struct.pack(">I", maximum)) + item(0x52, b"1.2.3.4") + b"".join(more))


def user_identity(kind: int, primary: bytes, secondary: bytes = b"", *, wants_response: bool = False) -> bytes:
    """A user identity sub-item."""
    body = bytes((kind, wants_response)) + struct.pack(">H", len(primary)) + primary
    return item(0x58, body + struct.pack(">H", len(secondary)) + secondary)


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU of any type."""
    return struct.pack(">BxI", kind, len(body)) + body


def associate_rq(
    *contexts: bytes,
    called: bytes = b"BRAIN",
    calling: bytes = b"MODALITY",
    version: int = 1,
    application_context: str = APPLICATION_CONTEXT,
    user: bytes | None = None,
    items: bytes = b"",
) -> bytes:
    """An association request; of one MR context when none is given."""
    body = struct.pack(">HH", version, 0) + called.ljust(16) + calling.ljust(16) + bytes(32)
    body += item(0x10, application_context.encode()) + items
    body += b"".join(contexts or (context(1, MR, EXPLICIT),))
    return pdu(1, body + (user_information() if user is None else user))


def data_pdu(context_id: int, fragment: bytes, *, command: bool, last: bool = True) -> bytes:
    """A P-DATA-TF of one item."""
    return pdu(4, struct.pack(">IBB", 2 + len(fragment), context_id, command | last << 1) + fragment)


def command_set(elements: dict[int, bytes | int | str]) -> bytes:
    """A command set of elements 0000,<number>: numbers are US, texts are UI."""
    body = b""
    for number, value in sorted(elements.items()):
        if isinstance(value, int):
            value = struct.pack("<H", value)
        elif isinstance(value, str):
            value = value.encode() + b"\0" * (len(value) % 2)
        body += struct.pack("<HHI", 0, number, len(value)) + value
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def store_rq(sop_class: str = MR, sop_instance: str = "1.2.3.1", **other: int) -> bytes:
    """A C-STORE-RQ; `other`: elements by their name in hexadecimal, such as e0110."""
    elements: dict[int, bytes | int | str] = {0x0002: sop_class, 0x0100: 1, 0x0110: 7, 0x0700: 0, 0x0800: 0}
    elements[0x1000] = sop_instance
    elements |= {int(name[1:], 16): value for name, value in other.items()}
    return command_set({number: value for number, value in elements.items() if value != ""})


def echo_rq() -> bytes:
    """A C-ECHO-RQ."""
    return command_set({0x0002: VERIFICATION, 0x0100: 0x30, 0x0110: 5, 0x0800: 0x0101})


def data_set(syntax: str = EXPLICIT, **attributes: object) -> bytes:
    """The data set of a small MR instance; attributes given as None are left out."""
    content = {
        "SOPClassUID": MR,
        "SOPInstanceUID": "1.2.3.1",
        "PatientID": "",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.0",
        "Modality": "MR",
        "PixelData": bytes(range(256)) * 8,
    } | attributes
    dataset = Dataset()
    for name, value in content.items():
        if value is not None:
            setattr(dataset, name, value)
    dataset["PixelData"].VR = "OW"
    return encoded(dataset, syntax)


def encoded(dataset: Dataset, syntax: str) -> bytes:
    """A data set in an uncompressed little endian syntax."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = syntax == IMPLICIT
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


class ScriptedPeer:
    """A connection. What it expects has to come within five seconds."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *pieces: bytes) -> None:
        """Say something."""
        self.socket.sendall(b"".join(pieces))

    def read_pdu(self) -> bytes:
        """The next PDU whole; b"" when the connection is closed or reset."""
        try:
            header = self._read(6)
            return header + self._read(struct.unpack(">I", header[2:])[0]) if header else b""
        except ConnectionError:
            return b""

    def associate(self, *contexts: bytes, **request: object) -> bytes:
        """Ask for an association; the answer, which has to be an acceptance."""
        self.send(associate_rq(*contexts, **request))  # type: ignore[arg-type]
        answer = self.read_pdu()
        assert answer[:1] == b"\x02", answer.hex()
        return answer

    def store(self, command: bytes, data: bytes, *, context_id: int = 1) -> int:
        """Send an instance; the status."""
        self.send(data_pdu(context_id, command, command=True), data_pdu(context_id, data, command=False))
        return self.read_status()

    def read_command(self) -> dict[int, bytes]:
        """The elements of the next command set, which has to be in one fragment."""
        answer = self.read_pdu()
        assert answer[:1] == b"\x04", answer.hex()
        return elements_of(answer[12:])

    def read_status(self) -> int:
        """The status of the next response."""
        return int.from_bytes(self.read_command()[0x0900], "little")

    def release(self) -> None:
        """End the association in order."""
        self.send(RELEASE_RQ)
        assert self.read_pdu() == RELEASE_RP

    def reset(self) -> None:
        """End the connection by RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.socket.recv(size - len(data))):
            data += more
        return data

    def __enter__(self) -> ScriptedPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()


def elements_of(data: bytes) -> dict[int, bytes]:
    """The elements of a command set."""
    elements, position = {}, 0
    while position < len(data):
        _, number, length = struct.unpack_from("<HHI", data, position)
        elements[number] = data[position + 8 : position + 8 + length]
        position += 8 + length
    return elements


def context_results(accept: bytes) -> dict[int, tuple[int, str]]:
    """Of an A-ASSOCIATE-AC: result and transfer syntax of each presentation context by its ID."""
    return {value[0]: (value[2], value[8:].decode()) for kind, value in items_of(accept[6 + 68 :]) if kind == 0x21}


def user_items(accept: bytes) -> dict[int, bytes]:
    """The sub-items of the user information."""
    return {sub: data for kind, value in items_of(accept[6 + 68 :]) if kind == 0x50 for sub, data in items_of(value)}


def items_of(data: bytes) -> Iterable[tuple[int, bytes]]:
    """Type and value of each item."""
    position = 0
    while position < len(data):
        kind, length = struct.unpack_from(">BxH", data, position)
        yield kind, data[position + 4 : position + 4 + length]
        position += 4 + length
