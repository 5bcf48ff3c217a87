"""What our own programs write to their log files: a line for each event, UTC, and nothing about patients."""

from __future__ import annotations

import logging
import time
import warnings

# What these say quotes what they were given: values of patients' attributes, addresses with queries.
TALKATIVE = ("pydicom", "pynetdicom", "dicomanonymizer", "dicomweb_client", "httpx", "httpcore")

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"


def log_to_stderr() -> None:
    """Let our loggers write to stderr. Prefect sets up the root logger, and lets nothing of ours pass.

    Warnings, and loggers of libraries that quote what they were given, are silenced.
    """
    handler = logging.StreamHandler()
    formatter = logging.Formatter(FORMAT, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    for name in ("clara_flow", "__main__"):  # the second: the program itself
        ours = logging.getLogger(name)
        ours.handlers = [handler]
        ours.propagate = False
        ours.setLevel(logging.INFO)
    for name in TALKATIVE:
        library = logging.getLogger(name)
        library.handlers, library.propagate = [logging.NullHandler()], False
    warnings.simplefilter("ignore")
