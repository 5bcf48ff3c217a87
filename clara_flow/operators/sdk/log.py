"""Log lines of an operator: one line per event on stdout, which the launcher keeps as the operator's log.

    2030-01-01T00:00:00.123Z INFO brain-extraction: mask written voxels=1956071 file=head.mhd

Time is UTC; facts follow the message as `name=value`, quoted as JSON where they hold a space. Nothing about a patient
belongs into a log: name files and counts, never attributes. DICOM UIDs, which files are often named by, are written
as a hash (`uid:` and the first 12 digits of their SHA-256), so that lines of one series can still be found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from datetime import UTC, datetime
from typing import Any

# Five components or more: shorter ones are version numbers and addresses (DICOM PS3.5 section 9 sets no lower bound).
_UID = re.compile(r"(?<![\d.])[0-2](?:\.(?:0|[1-9]\d*)){4,}(?!\.?\d)")

_stage = os.environ.get("CLARA_STAGE_NAME") or "stand-alone"


def name_stage(name: str) -> None:
    """Set the name that log lines carry; the driver does so as soon as it knows its stage."""
    global _stage
    _stage = name


def info(message: str, **facts: Any) -> None:
    """Something went as it should. `facts` are numbers, short texts, paths."""
    _write("INFO", message, facts)


def warning(message: str, **facts: Any) -> None:
    """Something is odd, but the result is still right."""
    _write("WARNING", message, facts)


def error(message: str, **facts: Any) -> None:
    """Something failed. The message says what, where and how to mend it."""
    _write("ERROR", message, facts)


def _write(level: str, message: str, facts: dict[str, Any]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = " ".join([f"{now} {level} {_stage}: {message}", *(f"{name}={_word(fact)}" for name, fact in facts.items())])
    line = _UID.sub(lambda uid: f"uid:{hashlib.sha256(uid[0].encode()).hexdigest()[:12]}", line)
    sys.stdout.write(line + "\n")  # one write: lines of several threads do not mix
    sys.stdout.flush()


def _word(fact: Any) -> str:
    text = f"{fact:g}" if isinstance(fact, float) else str(fact)
    plain = text and not any(char.isspace() or char in '"=' for char in text)
    return text if plain else json.dumps(text, ensure_ascii=False)
