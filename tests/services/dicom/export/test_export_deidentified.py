"""De-identification on the way out: what leaves says nothing of the patient, and nothing leaves where that fails."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.dsutils import decode
from services.dicom.export.export_world import World
from services.dicom.export.images import sample
from services.dicom.export.peers import scp
from services.dicom.export.stow_peer import stow_peer

from clara_flow.records.dicom_models import DeliveryState, ItemState

SUCCEEDED, FAILED = DeliveryState.SUCCEEDED, DeliveryState.FAILED


def test_c_store_without_the_patient(world: World) -> None:
    (path,) = world.images(1)
    original = dcmread(path)
    with scp(lambda event, number: 0xA700 if number == 0 else 0) as peer, world.exporting():
        world.destination("PACS", peer.port, deidentify="basic")
        (delivery,) = world.register("PACS", path)
        assert world.ended(delivery).state is SUCCEEDED
    (first, content), (second, _) = peer.received
    assert b"PLANTED" not in content
    assert b"Planted" not in content
    assert first == second != original.SOPInstanceUID, "sent again it is the same instance"
    received = decode(BytesIO(content), ExplicitVRLittleEndian.is_implicit_VR, True)
    assert received.PixelData == original.PixelData
    assert world.items(delivery)[0].sop_instance_uid == first


def test_compressed_files_stay_compressed(world: World) -> None:
    path = sample("MR_small_RLE.dcm")
    with scp(syntaxes=["1.2.840.10008.1.2.5"]) as peer, world.exporting():
        world.destination("PACS", peer.port, deidentify="basic")
        (delivery,) = world.register("PACS", path)
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.received) == 1


def test_stow_without_the_patient(world: World) -> None:
    (path,) = world.images(1)
    with stow_peer() as peer, world.exporting():
        world.stow("WEB", peer.url, deidentify="basic")
        (delivery,) = world.register("WEB", path, agent="DICOMweb")
        assert world.ended(delivery).state is SUCCEEDED
    ((uid, content),) = peer.requests[0]
    assert b"PLANTED" not in content
    assert dcmread(BytesIO(content)).SOPInstanceUID == uid == world.items(delivery)[0].sop_instance_uid


@pytest.mark.parametrize("kind", ["DIMSE", "STOW"])
def test_nothing_leaves_where_it_fails(kind: str, world: World) -> None:
    def broken(data_set: Dataset, profile: str) -> Any:
        raise ValueError(f"cannot clean {data_set.PatientName}")

    with scp() as dimse, stow_peer() as web, world.exporting(deidentify=broken):
        if kind == "DIMSE":
            world.destination("PACS", dimse.port, deidentify="basic")
        else:
            world.stow("PACS", web.url, deidentify="basic")
        (delivery,) = world.register("PACS", *world.images(1))
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (FAILED, 0)
    assert [item.state for item in world.items(delivery)] == [ItemState.POISON]
    assert ended.message.endswith("(it cannot be de-identified (ValueError))")
    assert dimse.received == []
    assert web.requests == []
