"""What our own programs write to their log files: a line for each event, UTC, and nothing about patients."""

from __future__ import annotations

import logging
import time

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"


def log_to_stderr() -> None:
    """Let our loggers write to stderr. Prefect sets up the root logger, and lets nothing of ours pass."""
    handler = logging.StreamHandler()
    formatter = logging.Formatter(FORMAT, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    ours = logging.getLogger("clara_flow")
    ours.handlers = [handler]
    ours.propagate = False
    ours.setLevel(logging.INFO)
