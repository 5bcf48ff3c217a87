"""DICOM files (PS3.10) that come in otherwise than by C-STORE, piece by piece, through the same spool."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from pydicom.filereader import read_dataset

from clara_flow.errors import NotFound, StorageError
from clara_flow.services.dicom.header import HeaderScanner
from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig, ListenerConfigFile
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.space import SpaceCheck
from clara_flow.services.dicom.spool import Incoming, Spool, SpoolWriter
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.contexts import is_storage
from clara_flow.services.dicom.wire.negotiation import is_uid
from clara_flow.services.dicom.wire.store import storage_outcome
from clara_flow.settings import Settings

START_BYTES = 144  # preamble, `DICM` and (0002,0000)
PREAMBLE_BYTES = 132
GROUP_LENGTH = struct.Struct("<HH2sHI")
LARGEST_META_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file: the status that C-STORE would have had, why, and its UIDs as far as they are known.

    is_new      it is in the spool; a SOP class that is ignored gives success, and no file.
    """

    status: int
    reason: str = ""
    sop_class: str = ""
    sop_instance: str = ""
    study: str = ""
    series: str = ""
    is_new: bool = False

    @property
    def is_success(self) -> bool:
        """Whether the sender may forget the file."""
        return self.status == Status.SUCCESS


class _Refused(Exception):
    """Raised within FileIntake for what is decided."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class FileIntake:
    """One file: `write` its bytes, then `finish` or `abandon`. Kept in memory is no more than its head.

    study       the only study that it may belong to; "": any.
    """

    def __init__(self, association: OpenAssociation, *, study: str = "") -> None:
        self._association = association
        self._study = study
        self._head = bytearray()
        self._meta_bytes = START_BYTES
        self._scanner: HeaderScanner | None = None
        self._scanned = False
        self._incoming: Incoming | None = None
        self._decided: tuple[int, str] | None = None
        self._sop_class = self._sop_instance = ""

    def write(self, data: bytes) -> None:
        """The next bytes of the file."""
        if self._decided is not None:
            return
        try:
            if self._scanner is None:
                self._head += data
                self._begin()
            else:
                self._take(data)
        except _Refused as refusal:
            self._decide(refusal.status, refusal.reason)
        except StorageError as error:
            self._decide_by(error)

    def finish(self) -> Outcome:
        """The file is whole. Success only when it is durable, or its SOP class is ignored."""
        study = series = ""
        if self._decided is None:
            try:
                study, series = self._commit()
            except _Refused as refusal:
                self._decide(refusal.status, refusal.reason)
            except StorageError as error:
                self._decide_by(error)
        status, reason = self._decided or (Status.SUCCESS, "")
        is_new = self._decided is None
        return Outcome(status, reason, self._sop_class, self._sop_instance, study, series, is_new)

    def abandon(self) -> None:
        """It will never be whole: nothing is left of it."""
        self._decide(Status.PROCESSING_FAILURE, "it was cut off")

    def _begin(self) -> None:
        """Look into the file meta information as soon as all of it is there, and begin the file in the spool."""
        if len(self._head) < START_BYTES:
            return
        group, element, _, _, length = GROUP_LENGTH.unpack_from(self._head, PREAMBLE_BYTES)
        if self._head[128:PREAMBLE_BYTES] != b"DICM" or (group, element) != (2, 0) or length > LARGEST_META_BYTES:
            raise _Refused(Status.CANNOT_UNDERSTAND, "it is no DICOM file with a file meta information")
        self._meta_bytes = START_BYTES + length
        if len(self._head) < self._meta_bytes:
            return
        head, rest = bytes(self._head[: self._meta_bytes]), bytes(self._head[self._meta_bytes :])
        self._head.clear()
        syntax = self._read_meta(head)
        config = self._association.config
        rule = config.aetitles.get(self._association.rule.ae_title)
        if rule is None or rule.draining:
            raise _Refused(Status.PROCESSING_FAILURE, "the AE title was removed")
        if self._sop_class in rule.ignored_sop_classes:
            raise _Refused(Status.SUCCESS, "instances of its SOP class are ignored")
        if self._association.is_space_short():
            raise _Refused(Status.OUT_OF_RESOURCES, "the disk is nearly full")
        self._scanner = HeaderScanner(syntax, config.group_tags)
        self._incoming = self._association.begin()
        self._incoming.write(head)
        self._take(rest)

    def _read_meta(self, head: bytes) -> str:
        """Note the UIDs, return the transfer syntax."""
        try:
            meta = read_dataset(io.BytesIO(head[PREAMBLE_BYTES:]), is_implicit_VR=False, is_little_endian=True)
            syntax = str(meta.TransferSyntaxUID)
            sop_class, sop_instance = str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID)
        except Exception:  # noqa: BLE001  pydicom raises whatever broken bytes make of it
            raise _Refused(Status.CANNOT_UNDERSTAND, "its file meta information cannot be read") from None
        if not is_uid(sop_instance):
            raise _Refused(Status.INVALID_INSTANCE, "its SOP Instance UID is no UID")
        if not is_storage(sop_class):
            raise _Refused(Status.CLASS_NOT_SUPPORTED, "its SOP class is none that is stored")
        self._sop_class, self._sop_instance = sop_class, sop_instance
        return syntax

    def _take(self, data: bytes) -> None:
        assert self._scanner is not None  # noqa: S101  for the type checker
        assert self._incoming is not None  # noqa: S101
        if not self._scanned:
            try:
                self._scanned = self._scanner.feed(data)
            except ValueError:
                raise _Refused(Status.CANNOT_UNDERSTAND, "its data set cannot be read") from None
        self._incoming.write(data)

    def _commit(self) -> tuple[str, str]:
        if self._scanner is None or self._incoming is None:
            raise _Refused(Status.CANNOT_UNDERSTAND, "it is no whole DICOM file")
        try:
            self._scanner.finish()
        except ValueError:
            raise _Refused(Status.CANNOT_UNDERSTAND, "its data set ends too early") from None
        facts = self._scanner.facts
        if not facts.study or not facts.series:
            raise _Refused(Status.DOES_NOT_MATCH, "it has no Study or Series Instance UID")
        if (facts.sop_class, facts.sop_instance) != (self._sop_class, self._sop_instance):
            raise _Refused(Status.DOES_NOT_MATCH, "its UIDs differ from those of its file meta information")
        if self._study and facts.study != self._study:
            raise _Refused(Status.DOES_NOT_MATCH, "it belongs to another study")
        self._incoming.commit(facts)
        self._incoming = None
        return facts.study, facts.series

    def _decide_by(self, error: StorageError) -> None:
        outcome = storage_outcome(error)
        self._decide(outcome.status, outcome.comment)

    def _decide(self, status: int, reason: str) -> None:
        self._decided = status, reason
        self._head.clear()
        if self._incoming is not None:
            with suppress(StorageError):
                self._incoming.abandon()
            self._incoming = None


@dataclass(frozen=True, slots=True)
class OpenAssociation:
    """What the files of one request have in common."""

    door: FileDoor
    rule: AeTitleRule
    writer: SpoolWriter
    number: object

    @property
    def config(self) -> ListenerConfig:
        """The configuration now."""
        return self.door.config.current()

    def is_space_short(self) -> bool:
        """Whether nothing more may be taken."""
        return self.door.space.is_short()

    def begin(self) -> Incoming:
        """A new file."""
        return self.writer.begin(self.number)  # type: ignore[arg-type]


class FileDoor:
    """The way into the spool for whole files; for any thread of one process. Its journal is begun when it is needed."""

    def __init__(
        self, settings: Settings, spool: Spool | None = None, config: ListenerConfigFile | None = None
    ) -> None:
        places = Places.of(settings)
        self.settings = settings
        self.spool = spool or Spool(places.spool)
        self.config = config or ListenerConfigFile(places.listener_config)
        self.space = SpaceCheck(settings.data_dir, settings.dicom_watermark_percent, settings.dicom_reserve_mib)
        self._lock = threading.Lock()
        self._writer: SpoolWriter | None = None

    def rule_of(self, ae_title: str) -> AeTitleRule:
        """One of our AE titles. Raises NotFound."""
        rule = self.config.current().aetitles.get(ae_title)
        if rule is None or rule.draining:
            raise NotFound(f"{ae_title[:16]!r} is none of our AE titles; `clara-flow dicom aetitle list` shows them")
        return rule

    @contextmanager
    def association(self, rule: AeTitleRule, *, calling: str, peer: str) -> Iterator[OpenAssociation]:
        """Files that come together. Left with an error it was aborted: what is stored by then stays.

        Raises StorageError.
        """
        writer = self._writing()
        number = writer.open_association(calling, rule.ae_title, rule.name, peer, rule.require_release)
        how: Literal["released", "aborted"] = "aborted"
        try:
            yield OpenAssociation(self, rule, writer, number)
            how = "released"
        finally:
            writer.close_association(number, how)

    def close(self) -> None:
        """Nothing more comes."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _writing(self) -> SpoolWriter:
        with self._lock:
            if self._writer is None:
                self._writer = self.spool.writer(self.settings.dicom_fsync)
            return self._writer
