"""Refusals of the upper layer in words (PS3.8 Tables 9-21 and 9-26)."""

from __future__ import annotations

RESULTS = {1: "rejected permanent", 2: "rejected transient"}
SOURCES = {1: "service user", 2: "service provider, ACSE", 3: "service provider, presentation"}
REASONS = {
    (1, 1): "no reason given",
    (1, 2): "application context name not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
ABORT_REASONS = {
    0: "reason not specified",
    1: "unrecognised PDU",
    2: "unexpected PDU",
    4: "unrecognised PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}


def rejection_in_words(body: bytes) -> str:
    """Of the four bytes of an A-ASSOCIATE-RJ.

    >>> rejection_in_words(bytes([0, 1, 1, 7]))
    'rejected the association: called AE title not recognised (rejected permanent, service user)'
    """
    result, source, reason = body[1:4].ljust(3, b"\0")
    why = REASONS.get((source, reason), f"reason {reason}")
    by = SOURCES.get(source, f"source {source}")
    return f"rejected the association: {why} ({RESULTS.get(result, f'result {result}')}, {by})"


def abort_in_words(body: bytes) -> str:
    """Of the four bytes of an A-ABORT.

    >>> abort_in_words(bytes([0, 0, 2, 6]))
    'aborted the association: invalid PDU parameter value (by its service provider)'
    """
    source, reason = body[2:4].ljust(2, b"\0")
    if source != 2:
        return "aborted the association (by its service user, who gives no reason)"
    return f"aborted the association: {ABORT_REASONS.get(reason, f'reason {reason}')} (by its service provider)"
