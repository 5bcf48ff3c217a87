"""C-MOVE for inference requests: an archive sends to an AE title of ours, and what came there goes into the request.

That AE title has the job processor `retrieve`. Listeners receive for it as for any other, and the grouper writes it
into the tables; there it is found by study, series and instance, and linked from the spool. Nothing depends on this
process being there while instances come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import sqlalchemy as sa
from pydicom.dataset import Dataset
from pynetdicom.association import Association

from clara_flow.errors import InputError
from clara_flow.records import dicom_config, dicom_group_files
from clara_flow.records.dicom_models import AeTitle
from clara_flow.services.dicom.grouping.retrieve import RetrieveProcessor
from clara_flow.services.dicom.inference_basket import Basket
from clara_flow.services.dicom.inference_request import Wanted
from clara_flow.services.dicom.journal_mark import is_read, journal_mark
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.negotiation import is_uid

MOVE = "1.2.840.10008.5.1.4.1.2.2.2"  # of the Study Root Query/Retrieve Information Model (PS3.4 Annex C.6.2)
PENDING = 0xFF00
DESTINATION_UNKNOWN = 0xA801  # PS3.4 Table C.4-2
SOME_FAILED = 0xB000
LOOK_S = 0.5
SILENCE_S = 300.0  # without an answer or an instance
ARRIVAL_S = 60.0  # for what was acknowledged to be in the tables


class Landing:
    """Our AE title that C-MOVE sends to, and the instances that came there.

    spool   where listeners put them.
    """

    def __init__(self, engine: sa.Engine, spool: Path) -> None:
        self.engine, self.spool = engine, spool

    def aetitle(self) -> AeTitle:
        """The first by name with the processor `retrieve`. Raises InputError when there is none."""
        rows = [row for row in dicom_config.list_aetitles(self.engine) if not row.draining]
        ours = sorted((row for row in rows if row.processor == RetrieveProcessor.name), key=lambda row: row.name)
        if not ours:
            raise InputError(
                "for C-MOVE we have no AE title that it could send to: add one with the processor "
                f"{RetrieveProcessor.name!r} (clara-flow dicom aetitle add), and tell the archive of it"
            )
        return ours[0]

    def take(self, aetitle: AeTitle, wanted: Wanted, basket: Basket) -> int:
        """Link what came of it into the basket; how many instances of it that has now."""
        found = dicom_group_files.spooled(self.engine, aetitle.name, wanted.study, wanted.series, wanted.instance)
        return sum(basket.link(uid, self.spool / path) for uid, path in found.items() if is_uid(uid))

    def wait(self, check: Callable[[], None]) -> None:
        """Until the tables know all that was acknowledged before now, but ARRIVAL_S at most. `check` may raise."""
        mark, until = journal_mark(self.spool), time.monotonic() + ARRIVAL_S
        ticks = threading.Event()
        while not is_read(self.engine, self.spool, mark) and time.monotonic() < until:
            check()
            ticks.wait(LOOK_S / 10)


def move(
    association: Association, query: Dataset, wanted: Wanted, aetitle: AeTitle, landing: Landing, basket: Basket
) -> None:
    """One C-MOVE to `aetitle`, until its end.

    Raises InputError when not everything came; ServiceError, StorageError, Stopped and NoRoom.
    """
    association.dimse_timeout = None  # answers between are optional (PS3.4 C.4.2.2): the watch knows when to give up
    final = Dataset()
    with _Watch(association, lambda: landing.take(aetitle, wanted, basket), basket) as watch:
        for status, _ in association.send_c_move(query, aetitle.ae_title, MOVE):
            watch.heard(status)
            final = status
    if watch.trouble is not None:
        raise watch.trouble
    landing.wait(basket.check)
    came = landing.take(aetitle, wanted, basket)
    _judge(final, came, aetitle.ae_title)


def _judge(final: Dataset, came: int, title: str) -> None:
    """Raises InputError unless the archive sent everything, and all of it came."""
    code = final.get("Status", Status.PROCESSING_FAILURE)
    if code == DESTINATION_UNKNOWN:
        raise InputError(
            f"it does not know our AE title {title}, or cannot send to it: register it there, with our address and "
            "port, and the archive here (clara-flow dicom source add)"
        )
    failed = final.get("NumberOfFailedSuboperations") or 0
    if code == SOME_FAILED or failed:
        raise InputError(f"it could not send {failed or 'all'} instances to our AE title {title}{_hint(came)}")
    if code != Status.SUCCESS:
        raise InputError(f"it answers C-MOVE with status 0x{code:04X}{_hint(came)}")
    sent = (final.get("NumberOfCompletedSuboperations") or 0) + (final.get("NumberOfWarningSuboperations") or 0)
    if came < sent:
        raise InputError(f"it says that it sent {sent} instances to our AE title {title}, and {came} came")
    if not came:
        raise InputError("nothing was sent by C-MOVE")


def _hint(came: int) -> str:
    return "" if came else "; it must be a source of ours (clara-flow dicom source add)"


class _Watch:
    """A thread beside a C-MOVE: takes what came, tells how it goes on, and breaks off what must end or goes on no more.

    take        links what came; how many there are.
    trouble     why it was broken off, None if it was not.
    """

    def __init__(self, association: Association, take: Callable[[], int], basket: Basket) -> None:
        self.trouble: Exception | None = None
        self._association, self._take, self._basket = association, take, basket
        self._came, self._sent, self._left = 0, 0, 0
        self._moved = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="C-MOVE", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def heard(self, status: Dataset) -> None:
        """The archive said something."""
        self._moved = time.monotonic()
        self._sent = status.get("NumberOfCompletedSuboperations") or self._sent
        self._left = status.get("NumberOfRemainingSuboperations") or 0

    def _run(self) -> None:
        try:
            while not self._over.wait(LOOK_S):
                self._look()
        except Exception as error:  # noqa: BLE001  raised by whoever waits for the archive
            self.trouble = error
            self._association.abort()
            self._association.dimse.msg_queue.put((None, None))  # whoever waits for an answer waits no more

    def _look(self) -> None:
        self._basket.check()
        came = self._take()
        if came != self._came:
            self._came, self._moved = came, time.monotonic()
            of_all = f" of {self._sent + self._left}" if self._left else ""
            self._basket.tell(f"{came}{of_all} instances came by C-MOVE")
        if time.monotonic() - self._moved > SILENCE_S:
            raise InputError(f"it said nothing and sent nothing for {SILENCE_S:g} s during C-MOVE")
