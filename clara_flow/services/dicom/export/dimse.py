"""C-STORE SCU (PS3.4 Annex B): presentation contexts from the files, associations that are used again."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydicom.dataset import Dataset
from pydicom.uid import UID

from clara_flow.records.dicom_models import ItemState
from clara_flow.services.dicom.export.files import Outgoing, Unsendable
from clara_flow.services.dicom.export.leases import Hold
from clara_flow.services.dicom.export.link import Link
from clara_flow.services.dicom.export.proposals import Context, Node
from clara_flow.services.dicom.export.retry_policy import Verdict, verdict_of
from clara_flow.services.dicom.export.sender import REST_S, Deidentify, DestinationFailed, Tell, cleaned
from clara_flow.services.dicom.export.transcode import PLAIN, encoded, name_of, transcoded
from clara_flow.services.dicom.wire.contexts import VERIFICATION

MAXIMUM_CONTEXTS = 128  # odd IDs of one byte (PS3.8 section 9.3.2.2)


@dataclass(slots=True)
class Batch:
    """Files that go over one association."""

    contexts: list[Context] = field(default_factory=list)
    files: list[Outgoing] = field(default_factory=list)


def batches(files: Iterable[Outgoing]) -> list[Batch]:
    """Files by association: all of a SOP class on one, no more than 128 contexts each.

    A file's own transfer syntax has a context of its own, so that the peer chooses nothing else where it takes that;
    the plain ones that are not proposed already stand in another one, for peers that do not. On each, files keep their
    order.
    """
    files = list(files)
    by_class: dict[str, list[Outgoing]] = {}
    for file in files:
        by_class.setdefault(file.sop_class, []).append(file)
    found: list[Batch] = []
    for sop_class, members in by_class.items():
        own = list(dict.fromkeys(file.transfer_syntax for file in members))
        contexts = [Context(sop_class, (syntax,)) for syntax in own]
        if others := tuple(syntax for syntax in PLAIN if syntax not in own):
            contexts.append(Context(sop_class, others))
        if not found or len(found[-1].contexts) + len(contexts) > MAXIMUM_CONTEXTS:
            found.append(Batch())
        found[-1].contexts += contexts
        found[-1].files += members
    places = {id(file): place for place, file in enumerate(files)}
    for batch in found:
        batch.files.sort(key=lambda file: places[id(file)])
    return found


class DimseSender:
    """Sends over associations of one thread; the last one rests for a while, for what comes next.

    profile     of de-identification; "": as it is. deidentify: does it.
    """

    def __init__(self, node: Node, *, profile: str = "", deidentify: Deidentify | None = None) -> None:
        self.node, self.profile, self.deidentify = node, profile, deidentify
        self._link: Link | None = None
        self._rests_until, self._has_rested = 0.0, False

    def probe(self) -> None:
        """C-ECHO. A peer that associates and takes no verification lives too."""
        self.close()
        try:
            link = Link(self.node, [Context(VERIFICATION, (PLAIN[1],))]).open()
        except DestinationFailed as failure:
            if failure.facts["kind"] == "aborted":
                return  # some abort where nothing that was proposed is of use to them
            raise
        try:
            for context_id in link.contexts:
                link.echo(context_id)
        finally:
            link.release()

    def send(self, files: Sequence[Outgoing], tell: Tell, hold: Hold) -> None:
        """See `Sender`."""
        for batch in batches(files):
            self._send(batch, tell, hold)

    def rest(self) -> float | None:
        """See `Sender`."""
        left = self._rests_until - time.monotonic()
        return left if self._link is not None and left > 0 and self._link.is_fresh else None

    def close(self) -> None:
        """See `Sender`."""
        if self._link is not None:
            self._link.release()
            self._link = None

    def _send(self, batch: Batch, tell: Tell, hold: Hold) -> None:
        for file in batch.files:
            hold.check()
            link = self._link_for(batch, hold)
            try:
                sent, verdict = self._try(link, file, hold)
            except DestinationFailed as failure:
                if not self._has_rested or failure.facts["kind"] not in {"lost", "aborted"}:
                    tell(file, Verdict(ItemState.FAILED, str(failure)))
                    raise
                link = self._link_for(batch, hold)  # the peer had ended it while it rested
                sent, verdict = self._try(link, file, hold)
            self._has_rested = False
            tell(sent, verdict)
        self._rests_until = time.monotonic() + REST_S
        self._has_rested = True

    def _try(self, link: Link, file: Outgoing, hold: Hold) -> tuple[Outgoing, Verdict]:
        try:
            with hold.cutting(link.cut):
                return self._store(link, file)
        except DestinationFailed:
            self._link = None
            hold.check()  # perhaps it was we who cut it
            raise

    def _link_for(self, batch: Batch, hold: Hold) -> Link:
        """An association for these: the one that there is, where it will do."""
        link = self._link
        if link is not None and link.is_fresh and set(batch.contexts) <= set(link.proposed):
            return link
        self.close()
        link = Link(self.node, batch.contexts)
        try:
            with hold.cutting(link.cut):
                link.open()
        except DestinationFailed:
            hold.check()  # perhaps it was we who cut it
            raise
        self._link, self._has_rested = link, False
        return link

    def _store(self, link: Link, file: Outgoing) -> tuple[Outgoing, Verdict]:
        """Send it; what was sent, and what the peer says of it."""
        accepted = {
            syntax: number for number, (sop_class, syntax) in link.contexts.items() if sop_class == file.sop_class
        }
        try:
            if self.profile:
                data_set, file = cleaned(file, self.profile, self.deidentify)
            elif (own := accepted.get(file.transfer_syntax)) is not None:
                with file.open_data_set() as content:
                    return file, verdict_of(link.store(own, file.sop_class, file.sop_instance, content))
            else:
                data_set = file.read()
            syntax, encoded_data = _encoded_for(data_set, file, accepted)
        except Unsendable as reason:
            return file, Verdict(ItemState.POISON, str(reason))
        except OSError as error:
            self._link = None  # half of it may be sent
            link.abort()
            return file, Verdict(ItemState.FAILED, f"it cannot be read: {(error.strerror or 'error').lower()}")
        stream = io.BytesIO(encoded_data)
        return file, verdict_of(link.store(accepted[syntax], file.sop_class, file.sop_instance, stream))


def _encoded_for(data_set: Dataset, file: Outgoing, accepted: Mapping[str, int]) -> tuple[str, bytes]:
    """The syntax that the peer takes it in, the file's own if it can be, and the data set in it. Raises Unsendable."""
    if file.transfer_syntax in accepted:
        return file.transfer_syntax, encoded(data_set, file.transfer_syntax)
    for syntax in PLAIN:
        if syntax in accepted:
            return syntax, transcoded(data_set, file.transfer_syntax, syntax)
    what = name_of(file.sop_class) if not UID(file.sop_class).is_private else "its SOP class"
    raise Unsendable(f"the destination takes no {what}, neither as {name_of(file.transfer_syntax)} nor uncompressed")
