"""Orthanc as the PACS that results go to, by C-STORE and by STOW-RS; findscu sees them there."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import dcmtk
import pytest
from orthanc_fixture import Orthanc
from pydicom import dcmread
from pydicom.dataset import Dataset
from services.dicom.export.export_world import MakeWorld, World
from services.dicom.export.images import sample

from clara_flow.records.dicom_models import DeliveryState, ItemState

SUCCEEDED, FAILED = DeliveryState.SUCCEEDED, DeliveryState.FAILED
TRAILING_PADDING = 0xFFFC_FFFC
COMPRESSED = ["SC_rgb_jpeg_gdcm.dcm", "examples_jpeg2k.dcm", "MR_small_RLE.dcm"]


def files_of(world: World) -> list[Path]:
    """Small images, and compressed ones."""
    return [*world.images(12), *map(sample, COMPRESSED)]


def content_of(file: Path | bytes) -> tuple[str, str, Dataset]:
    """SOP Instance UID, transfer syntax, and all attributes but those that dcmtk, of which Orthanc is made, omits."""
    data_set = dcmread(file if isinstance(file, Path) else BytesIO(file))
    for tag in list(data_set.keys()):
        if tag.element == 0 or tag == TRAILING_PADDING:
            del data_set[tag]
    return data_set.SOPInstanceUID, data_set.file_meta.TransferSyntaxUID, data_set


def by_uid(files: Sequence[Path | bytes]) -> dict[str, tuple[str, str, Dataset]]:
    """Their contents by SOP Instance UID."""
    return {content[0]: content for content in map(content_of, files)}


def found(orthanc: Orthanc, sop_instance: str, study: str, series: str) -> bool:
    """Whether findscu sees this instance."""
    keys = {
        "QueryRetrieveLevel": "IMAGE",
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "SOPInstanceUID": sop_instance,
    }
    options = [word for key, value in keys.items() for word in ("-k", f"{key}={value}")]
    asked = dcmtk.run("findscu", "-v", "-S", "-aec", orthanc.ae_title, *options, "127.0.0.1", str(orthanc.port))
    assert asked.returncode == 0, asked.stderr
    return f"[{sop_instance}" in asked.stdout + asked.stderr and "(Pending)" in asked.stdout + asked.stderr


def test_by_c_store(orthanc: Orthanc, world: World) -> None:
    files = files_of(world)
    world.destination("PACS", orthanc.port, ae_title=orthanc.ae_title)
    (delivery,) = world.register("PACS", *files)
    with world.exporting():
        assert world.ended(delivery).state is SUCCEEDED
    assert by_uid(orthanc.files()) == by_uid(files)
    result = dcmread(files[0])
    uids = result.StudyInstanceUID, result.SeriesInstanceUID
    assert found(orthanc, result.SOPInstanceUID, *uids)
    assert not found(orthanc, "1.2.3", *uids)


def test_by_stow(orthanc: Orthanc, world: World) -> None:
    files = files_of(world)
    world.stow("WEB", orthanc.dicom_web)
    (delivery,) = world.register("WEB", *files, agent="DICOMweb")
    with world.exporting():
        assert world.ended(delivery).state is SUCCEEDED
    assert {item.state for item in world.items(delivery)} == {ItemState.SENT}
    assert sorted(orthanc.files()) == sorted(file.read_bytes() for file in files)


@pytest.mark.parametrize("agent", ["ClaraSCU", "DICOMweb"])
def test_what_it_has_already_is_no_failure(agent: str, orthanc: Orthanc, world: World) -> None:
    files = world.images(2)
    world.destination("PACS", orthanc.port, ae_title=orthanc.ae_title)
    world.stow("WEB", orthanc.dicom_web)
    with world.exporting():
        for _ in range(2):
            (delivery,) = world.register("PACS" if agent == "ClaraSCU" else "WEB", *files, agent=agent)
            assert world.ended(delivery).state is SUCCEEDED
    assert len(orthanc.files()) == 2


def test_a_wrong_ae_title_is_told(orthanc: Orthanc, make_world: MakeWorld) -> None:
    world = make_world(dicom_export_retries=0)
    world.destination("PACS", orthanc.port, ae_title="SOMEBODY")
    (delivery,) = world.register("PACS", *world.images(1))
    with world.exporting():
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert "called AE title not recognised" in ended.message
    assert orthanc.files() == []
