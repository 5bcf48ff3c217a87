"""Orthanc sends to our listener: because somebody presses a button there, or because movescu asks it to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dcmtk
import pydicom
import pytest
from orthanc_fixture import AE_TITLE, Orthanc
from services.dicom.foreign_files import foreign_files
from services.dicom.wire.conftest import Listening

from clara_flow.services.dicom.listener_config import ListenerConfig, SourceRule

NAMES = ("CT_small.dcm", "SC_rgb_jpeg_gdcm.dcm", "examples_jpeg2k.dcm", "MR_small_RLE.dcm")
TRAILING_PADDING = 0xFFFC_FFFC


@pytest.fixture
def listening(listen: Callable[..., Listening], config: ListenerConfig) -> Listening:
    """It knows Orthanc."""
    return listen(config=replace(config, sources=(SourceRule(ae_title=AE_TITLE, host="127.0.0.1"),)))


@pytest.fixture
def samples() -> list[Path]:
    """Plain and compressed images."""
    found = {file.path.name: file.path for file in foreign_files()}
    return [found[name] for name in NAMES]


def assert_received(listening: Listening, samples: list[Path]) -> None:
    """All of them, in their own transfer syntax, as they were."""
    stored = {}
    for entry in listening.stored():
        one = pydicom.dcmread(listening.options.spool / entry.path)
        assert one.file_meta.SourceApplicationEntityTitle == AE_TITLE
        stored[one.SOPInstanceUID] = one
    assert len(stored) == len(samples)
    for path in samples:
        original = pydicom.dcmread(path)
        original.pop(TRAILING_PADDING, None)  # dcmtk, which Orthanc is made of, leaves it out
        assert stored[original.SOPInstanceUID] == original, path.name
        assert stored[original.SOPInstanceUID].file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID, (
            path.name
        )


def test_it_echoes_and_sends(orthanc: Orthanc, listening: Listening, samples: list[Path]) -> None:
    numbers = [orthanc.upload(path) for path in samples]
    orthanc.knows_node("ours", "BRAIN", listening.port)
    orthanc.ask("/modalities/ours/echo", {})
    answer = orthanc.ask("/modalities/ours/store", {"Resources": numbers, "Synchronous": True})
    assert (answer["InstancesCount"], answer["FailedInstancesCount"]) == (len(samples), 0)
    assert_received(listening, samples)
    assert {closed.how for closed in listening.closed()} == {"released"}


def test_it_is_told_that_it_may_not(orthanc: Orthanc, listening: Listening, samples: list[Path]) -> None:
    number = orthanc.upload(samples[0])
    orthanc.knows_node("ours", "NOBODY", listening.port)
    refused = orthanc.web.post("/modalities/ours/store", json={"Resources": [number], "Synchronous": True})
    assert refused.status_code == 500
    assert "Association Rejected" in refused.json()["Details"]
    assert listening.files() == []


def test_movescu_has_it_send(orthanc: Orthanc, listening: Listening, samples: list[Path]) -> None:
    for path in samples:
        orthanc.upload(path)
    orthanc.knows_node("ours", "BRAIN", listening.port)
    for path in samples:
        study = pydicom.dcmread(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"]
        moved = dcmtk.run(
            "movescu", "-S", "-aet", "DESK", "-aem", "BRAIN", "-aec", AE_TITLE, *keys, "127.0.0.1", str(orthanc.port)
        )
        assert moved.returncode == 0, moved.stderr
    assert_received(listening, samples)
