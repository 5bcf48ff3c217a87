"""Nothing of a patient comes into our programs' logs by the libraries that read DICOM."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from clara_flow.deployments.own_log import log_to_stderr

log_to_stderr()
import pydicom, pynetdicom
from pydicom.dataset import Dataset

dataset = Dataset()
dataset.PatientBirthDate = "Doe^Jane"
dataset.StudyInstanceUID = "Doe^Jane"
for name in ("pydicom", "pynetdicom.acse", "httpx"):
    logging.getLogger(name).warning("Doe^Jane")
logging.getLogger("clara_flow.x").warning("ours")
"""


def test_libraries_do_not_quote_what_they_read() -> None:
    told = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert "ours" in told.stderr
    assert "Doe" not in told.stderr + told.stdout
