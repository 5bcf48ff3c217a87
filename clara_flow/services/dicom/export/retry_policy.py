"""What answers mean, and what becomes of a delivery: pure functions, no clock, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from clara_flow.records.delivery_states import SENT
from clara_flow.records.dicom_models import ItemState

LONGEST_S = 3600.0
JITTER = 0.2  # of a pause, to either side
SHOWN_REASONS = 4


class Verdict(NamedTuple):
    """What became of one file; `reason` names no patient and no UID."""

    state: ItemState
    reason: str = ""


# PS3.4 Table B.2-1 has ranges; single ones are of PS3.7 Annex C. FAILED may work later, POISON never.
_STATUSES: dict[int, Verdict] = {
    0x0000: Verdict(ItemState.SENT),
    0x0001: Verdict(ItemState.SENT, "requested optional attributes are not supported"),
    0x0105: Verdict(ItemState.POISON, "no such attribute"),
    0x0106: Verdict(ItemState.POISON, "invalid attribute value"),
    0x0107: Verdict(ItemState.SENT, "attribute list error"),
    0x0110: Verdict(ItemState.FAILED, "processing failure"),
    0x0111: Verdict(ItemState.SENT, "the destination had it already"),
    0x0112: Verdict(ItemState.FAILED, "no such SOP instance"),
    0x0115: Verdict(ItemState.POISON, "invalid argument value"),
    0x0116: Verdict(ItemState.SENT, "attribute value out of range"),
    0x0117: Verdict(ItemState.POISON, "invalid SOP instance"),
    0x0118: Verdict(ItemState.POISON, "no such SOP class"),
    0x0119: Verdict(ItemState.POISON, "class and instance conflict"),
    0x0120: Verdict(ItemState.POISON, "missing attribute"),
    0x0121: Verdict(ItemState.POISON, "missing attribute value"),
    0x0122: Verdict(ItemState.POISON, "SOP class not supported"),
    0x0124: Verdict(ItemState.FAILED, "not authorized"),
    0x0131: Verdict(ItemState.FAILED, "duplicate transaction UID"),
    0x0210: Verdict(ItemState.FAILED, "duplicate invocation"),
    0x0211: Verdict(ItemState.POISON, "unrecognized operation"),
    0x0212: Verdict(ItemState.POISON, "mistyped argument"),
    0x0213: Verdict(ItemState.FAILED, "resource limitation"),
    0xB000: Verdict(ItemState.SENT, "coercion of data elements"),
    0xB006: Verdict(ItemState.SENT, "elements discarded"),
    0xB007: Verdict(ItemState.SENT, "data set does not match its SOP class"),
    0xC122: Verdict(ItemState.POISON, "referenced SOP class not supported"),
    0xFE00: Verdict(ItemState.FAILED, "cancelled"),
}
_RANGES: dict[int, Verdict] = {  # by their first two digits, or by the first followed by a zero
    0xA7: Verdict(ItemState.FAILED, "out of resources"),
    0xA9: Verdict(ItemState.POISON, "data set does not match its SOP class"),
    0xA0: Verdict(ItemState.FAILED, "refused"),
    0xB0: Verdict(ItemState.SENT, "warning"),
    0xC0: Verdict(ItemState.POISON, "cannot be understood"),
}


def verdict_of(status: int) -> Verdict:
    """What a C-STORE status, or the failure or warning reason of STOW-RS (PS3.18 Annex I), means for its file.

    >>> verdict_of(0xA700)
    Verdict(state=<ItemState.FAILED: 'FAILED'>, reason='0xA700 out of resources')
    """
    known = _STATUSES.get(status) or _RANGES.get(status >> 8) or _RANGES.get(status >> 8 & 0xF0)
    known = known or Verdict(ItemState.FAILED, "unknown status")
    return known if status == 0 else Verdict(known.state, f"0x{status:04X} {known.reason}")


class Course(StrEnum):
    """What is reported of a delivery: it succeeds, it fails for good, it is tried again."""

    SUCCEED = "succeed"
    FAIL = "fail"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Settlement:
    """What becomes of a delivery, and why. waits_for_report: all is sent, but not yet committed."""

    course: Course
    message: str = ""
    waits_for_report: bool = False


def settle(
    verdicts: Iterable[Verdict], *, retries: int, maximum_retries: int, commitment: bool = False, trouble: str = ""
) -> Settlement:
    """What to report once every file of a delivery has its verdict.

    retries     how often it was tried again before.
    commitment  whether the destination must have committed itself to each file.
    trouble     what kept the destination as a whole from taking them.

    Part of a delivery that was sent is no success: each file counts. What can never work does not wait for retries.
    """
    verdicts = list(verdicts)
    missing = [verdict for verdict in verdicts if verdict.state not in SENT]
    unconfirmed = [verdict for verdict in verdicts if commitment and verdict.state is ItemState.SENT]
    if not missing and not unconfirmed:
        return Settlement(Course.SUCCEED)
    message = _sentence(verdicts, len(unconfirmed), trouble)
    if not unconfirmed and all(verdict.state is ItemState.POISON for verdict in missing):
        return Settlement(Course.FAIL, message)
    if retries < maximum_retries:
        return Settlement(Course.LATER, message, waits_for_report=not missing)
    return Settlement(Course.FAIL, f"{message}; tried {retries + 1} times")


def _sentence(verdicts: list[Verdict], unconfirmed: int, trouble: str) -> str:
    sent = sum(verdict.state in SENT for verdict in verdicts)
    parts = [trouble] if trouble else []
    parts.append(f"{sent} of {len(verdicts)} files sent")
    if unconfirmed:
        parts.append(f"{unconfirmed} not confirmed by storage commitment")
    reasons = {
        "set aside": Counter(verdict.reason for verdict in verdicts if verdict.state is ItemState.POISON),
        "failed": Counter(
            verdict.reason
            for verdict in verdicts
            if verdict.state in {ItemState.FAILED, ItemState.PENDING} and not (trouble and verdict.reason == trouble)
        ),
    }
    parts += [f"{told.total()} {word} ({_shown(told)})" for word, told in reasons.items() if told]
    return "; ".join(parts)


def _shown(reasons: Mapping[str, int]) -> str:
    words = [reason or "not tried" for reason in list(reasons)[:SHOWN_REASONS]]
    return ", ".join(words + (["and others"] if len(reasons) > SHOWN_REASONS else []))


def pause_s(retries: int, first_s: float, draw: float) -> float:
    """Seconds before the next try of a delivery that failed `retries` times before; `draw` evenly in [0, 1): jitter.

    It doubles from one to the next, up to an hour.
    """
    return min(first_s * 2.0 ** min(retries, 32), LONGEST_S) * (1 + JITTER * (2 * draw - 1))
