"""What every way of sending promises to the queue that uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from pydicom.dataset import Dataset

from clara_flow.errors import InputError, PlatformError
from clara_flow.services.dicom.export.files import Outgoing, Unsendable
from clara_flow.services.dicom.export.leases import Hold
from clara_flow.services.dicom.export.retry_policy import Verdict

REST_S = 5.0  # connections are kept so long, for the next delivery

Tell = Callable[[Outgoing, Verdict], None]  # of a file, with the UIDs under which it was sent
Deidentify = Callable[[Dataset, str], Dataset]


class DestinationFailed(PlatformError):
    """A destination as a whole did not do its part; the message says how, in words.

    kind        one word for metrics: unreachable, rejected, aborted, lost, silent, protocol, credentials, server.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message, kind=kind)


class Sender(Protocol):
    """Sends to one destination; for one thread, except that a hold's `break_off` may end what is under way."""

    def probe(self) -> None:
        """Ask the destination for a sign of life where there is a way to. Raises DestinationFailed."""

    def send(self, files: Sequence[Outgoing], tell: Tell, hold: Hold) -> None:
        """Send the files in some order, and tell each one's verdict at once.

        Raises DestinationFailed when the destination failed as a whole: files of which nothing was told were not sent,
        as far as one can know. Raises BrokenOff when the hold says so.
        """

    def rest(self) -> float | None:
        """For how many seconds its connection may rest yet; None when there is none that is worth keeping."""

    def close(self) -> None:
        """Let go of everything."""


class Unusable:
    """The sender of a destination that cannot even be tried: it fails as often as it is asked."""

    def __init__(self, failure: DestinationFailed) -> None:
        self.failure = failure

    def probe(self) -> None:
        """See `Sender`."""
        raise self.failure

    def send(self, files: Sequence[Outgoing], tell: Tell, hold: Hold) -> None:
        """See `Sender`."""
        raise self.failure

    def rest(self) -> float | None:
        """See `Sender`."""
        return None

    def close(self) -> None:
        """See `Sender`."""


def cleaned(file: Outgoing, profile: str, deidentify: Deidentify | None) -> tuple[Dataset, Outgoing]:
    """A file without who it is of: the data set, and the file with the UIDs that it has now.

    The profile makes the same UIDs every time, so that a file that is sent again is the same one to the destination.
    Raises Unsendable when it cannot be made safe: then it does not leave.
    """
    if deidentify is None:
        raise Unsendable(f"de-identification profile {profile!r} cannot be applied")
    data_set = file.read()
    try:
        data_set = deidentify(data_set, profile)
        sop_class, sop_instance = str(data_set.SOPClassUID), str(data_set.SOPInstanceUID)
    except InputError as error:
        raise Unsendable(str(error)) from None
    except Exception as error:  # noqa: BLE001 - whatever a library makes of whatever a file holds
        raise Unsendable(f"it cannot be de-identified ({type(error).__name__})") from None
    return data_set, replace(file, sop_class=sop_class, sop_instance=sop_instance)
