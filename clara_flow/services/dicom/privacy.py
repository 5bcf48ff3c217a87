"""What may be said of received objects in logs, metrics and names: nothing that leads to a patient."""

from __future__ import annotations

import hashlib

SHOWN_DIGITS = 12


def hashed(uid: str) -> str:
    """12 hex digits that stand for a UID, or a name, in logs: enough to find the same one again."""
    return hashlib.blake2b(uid.encode("utf-8", "surrogatepass"), digest_size=SHOWN_DIGITS // 2).hexdigest()


def place_of(error: BaseException, *, steps: int = 6) -> str:
    """Where it was raised: `module:line`, innermost first, so many of them at most; no value, which tracebacks show."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "?")
        places.append(f"{module}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " < ".join(reversed(places[-steps:])) or "?"
