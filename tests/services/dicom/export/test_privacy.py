"""Nothing of a patient in logs, messages, reasons and signs of life, whatever goes wrong."""

from __future__ import annotations

import logging

import pytest
from pydicom import dcmread
from pynetdicom import evt
from services.dicom.export.export_world import World
from services.dicom.export.images import image, write
from services.dicom.export.peers import scp

from clara_flow.services.dicom.places import Places


def test_planted_names_and_uids_are_nowhere(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, logger="clara_flow")
    broken = image()
    broken.compress("1.2.840.10008.1.2.5")
    broken.PixelData = broken.PixelData[:40] + b"\xff" * 16
    wrong_uid = image()
    wrong_uid.StudyInstanceUID = "1.2.PLANTED"
    folder = world.settings.data_dir
    files = [
        *world.images(3),
        write(broken, folder / "broken.dcm"),
        write(wrong_uid, folder / "wrong.dcm"),
    ]

    def answer(event: evt.Event, number: int) -> int:
        if number == 1:
            event.assoc.abort()
        return 0xA700 if number == 2 else 0

    with scp(answer) as peer, world.exporting() as exporter:
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *files)
        world.ended(delivery)

        def bug(*arguments: object, **facts: object) -> None:
            raise ValueError(f"a bug that quotes {arguments} Planted^Name")

        monkeypatch.setattr("clara_flow.services.dicom.export.delivering.outgoing", bug)
        (unlucky,) = world.register("PACS", *files)
        ended = world.ended(unlucky)
        assert ended.message.startswith("the exporter broke (ValueError:")
        assert exporter.agents == ("ClaraSCU", "DICOMweb")
    told = [record.getMessage() for record in caplog.records if record.name.startswith("clara_flow")]
    told += [world.look(delivery).message, ended.message]
    told += [item.reason for item in world.items(delivery)]
    told += [path.read_text() for path in Places.of(world.settings).heartbeats.iterdir()]
    uids = [str(dcmread(file).SOPInstanceUID) for file in files]
    for text in told:
        assert "planted" not in text.lower()
        assert not any(uid in text for uid in uids)
    assert caplog.records
