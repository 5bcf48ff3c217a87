"""Files of a payload on their way out: what must be known of them to send their bytes as they are."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import config
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pynetdicom.dsutils import split_dataset

from clara_flow.errors import InputError
from clara_flow.records.payload_store import PayloadFolder
from clara_flow.services.dicom.reading import read_header, read_whole

PREAMBLE_BYTES, PREFIX = 128, b"DICM"
LAST_WANTED = 0x0020000E  # Series Instance UID
WANTED = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
MAXIMUM_UID = 64


class Unsendable(InputError):
    """This file can never be sent, and trying again does not help. The message names no patient and no UID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A DICOM file (PS3.10) that can be sent.

    offset      of the data set's first byte: from there on the file is what goes over the wire.
    size_bytes  of the data set.
    """

    uri: str
    path: Path
    sop_class: str
    sop_instance: str
    transfer_syntax: str
    offset: int
    size_bytes: int

    def open_data_set(self) -> BinaryIO:
        """Its encoded data set. Raises OSError."""
        file = self.path.open("rb")
        file.seek(self.offset)
        return file

    def read(self) -> Dataset:
        """The whole of it, parsed. Raises Unsendable, OSError."""
        try:
            return read_whole(self.path)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever pydicom makes of whatever a file holds
            raise Unsendable(f"it cannot be parsed ({type(error).__name__})") from None


def outgoing(folder: PayloadFolder, uri: str) -> Outgoing:
    """The file `uri` of a payload. Raises Unsendable when it can never be sent, OSError when the disk fails."""
    root = folder.path
    try:
        path = (root / uri).resolve()
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, links in a circle
        raise Unsendable("its name is no file's") from None
    if not path.is_relative_to(root.resolve()):
        raise Unsendable("its name leads out of the payload")
    if not root.is_dir():
        raise Unsendable("the files of its job were removed")
    try:
        is_file = path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        is_file = False
    if not is_file:
        raise Unsendable("there is no such file")
    with path.open("rb") as file:
        head = file.read(PREAMBLE_BYTES + len(PREFIX))
    if head[PREAMBLE_BYTES:] != PREFIX:
        raise Unsendable("it is no DICOM file")
    syntax, offset, uids = _parsed(path)
    if not syntax:
        raise Unsendable("it has no Transfer Syntax UID")
    for name, uid in uids.items():
        if not uid:
            raise Unsendable(f"it has no {_spaced(name)}")
        if not UID.fullmatch(uid) or len(uid) > MAXIMUM_UID:
            raise Unsendable(f"its {_spaced(name)} is not valid")
    return Outgoing(
        uri=uri,
        path=path,
        sop_class=uids["SOPClassUID"],
        sop_instance=uids["SOPInstanceUID"],
        transfer_syntax=syntax,
        offset=offset,
        size_bytes=path.stat().st_size - offset,
    )


def _parsed(path: Path) -> tuple[str, int, dict[str, str]]:
    """Its transfer syntax, where the data set begins, and the UIDs in that; "" for what is not there."""
    try:
        with config.disable_value_validation():
            _, offset = split_dataset(path)
            data_set = read_header(path, WANTED, last=LAST_WANTED)
            uids = {name: str(data_set.get(name) or "") for name in WANTED}  # values are decoded here
            return str(read_file_meta_info(path).get("TransferSyntaxUID", "")), offset, uids
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever pydicom makes of whatever a file holds
        raise Unsendable(f"it cannot be parsed ({type(error).__name__})") from None


def _spaced(keyword: str) -> str:
    """StudyInstanceUID -> Study Instance UID."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=SOP)(?=[A-Z])", " ", keyword)
