"""C-STORE to real peers: what arrives, what is told of each file, what is tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from dcmtk import Storescp
from platform_fixture import free_port
from pydicom import dcmread
from pynetdicom import evt
from services.dicom.export.export_world import MakeWorld, World
from services.dicom.export.images import RLE, data_set_bytes, image, same_pixels, sample, write
from services.dicom.export.peers import scp, silent
from waiting import eventually

from clara_flow.records import deliveries, dicom_config
from clara_flow.records.dicom_models import DeliveryState, ItemState

SUCCEEDED, FAILED = DeliveryState.SUCCEEDED, DeliveryState.FAILED
SENT, POISON = ItemState.SENT, ItemState.POISON


def states(world: World, delivery: deliveries.Delivery) -> list[ItemState]:
    return [item.state for item in world.items(delivery)]


def test_dcmtk_receives_every_file_byte_for_byte(world: World, storescp: Callable[..., Storescp]) -> None:
    peer = storescp("+B")  # writes the data set as it came
    world.destination("PACS", peer.port)
    files = world.images(5)
    (delivery,) = world.register("pacs", *files)
    with world.exporting():
        assert world.ended(delivery).state is SUCCEEDED
    assert sorted(map(data_set_bytes, files)) == sorted(map(data_set_bytes, peer.received))
    items = world.items(delivery)
    assert {item.state for item in items} == {SENT}
    assert {item.sop_instance_uid for item in items} == {str(dcmread(file).SOPInstanceUID) for file in files}


def test_compressed_files_go_as_they_are_where_the_peer_takes_them(
    world: World, storescp: Callable[..., Storescp]
) -> None:
    peer = storescp("+B", "--accept-all")
    world.destination("PACS", peer.port)
    names = ["SC_rgb_jpeg_gdcm.dcm", "693_J2KI.dcm", "examples_jpeg2k.dcm", "CT_small.dcm", "MR_small_RLE.dcm"]
    (delivery,) = world.register("PACS", *map(sample, names))
    with world.exporting():
        assert world.ended(delivery).state is SUCCEEDED
    sent = {str(dcmread(sample(name)).SOPInstanceUID): data_set_bytes(sample(name)) for name in names}
    assert {str(dcmread(path).SOPInstanceUID): data_set_bytes(path) for path in peer.received} == sent


@pytest.mark.parametrize("option", ["+xi", "+xe"])
def test_it_is_transcoded_only_for_a_peer_that_takes_no_other_syntax(
    option: str, world: World, storescp: Callable[..., Storescp]
) -> None:
    peer = storescp("+B", option)  # implicit VR only; explicit VR little endian preferred, with implicit
    world.destination("PACS", peer.port)
    names = ["SC_rgb_jpeg_gdcm.dcm", "MR_small_RLE.dcm", "CT_small.dcm", "ExplVR_BigEnd.dcm", "image_dfl.dcm"]
    (delivery,) = world.register("PACS", *map(sample, names))
    with world.exporting():
        assert world.ended(delivery).state is SUCCEEDED, [item.reason for item in world.items(delivery)]
    received = {str(dcmread(path).SOPInstanceUID): path for path in peer.received}
    for name in names:
        original = dcmread(sample(name))
        assert same_pixels(sample(name), received[str(original.SOPInstanceUID)]), name


def test_deflated_and_big_endian_files_go_as_they_are(world: World) -> None:
    names = ["image_dfl.dcm", "ExplVR_BigEnd.dcm"]
    classes = [str(dcmread(sample(name)).SOPClassUID) for name in names]
    syntaxes = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"]
    with scp(classes=list(set(classes)), syntaxes=syntaxes) as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *map(sample, names))
        assert world.ended(delivery).state is SUCCEEDED
    assert sorted(content for _, content in peer.received) == sorted(data_set_bytes(sample(name)) for name in names)


def test_a_file_at_which_the_peer_breaks_off_does_not_keep_the_others_from_it(world: World) -> None:
    files = world.images(4)
    feared = str(dcmread(files[0]).SOPInstanceUID)

    def answer(event: evt.Event, number: int) -> int:
        if event.request.AffectedSOPInstanceUID == feared:
            event.assoc.abort()
        return 0

    with scp(answer) as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *files)
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert states(world, delivery) == [ItemState.FAILED, SENT, SENT, SENT]
    assert "aborted the association" in world.items(delivery)[0].reason


def test_what_cannot_be_decoded_is_set_aside_with_a_reason(world: World, storescp: Callable[..., Storescp]) -> None:
    peer = storescp("+xi")
    world.destination("PACS", peer.port)
    broken = image()
    broken.compress(RLE)
    broken.PixelData = broken.PixelData[:40] + b"\xff" * 16
    path = write(broken, world.settings.data_dir / "broken.dcm")
    (delivery,) = world.register("PACS", path, *world.images(1))
    with world.exporting():
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert ended.retries == 0
    assert states(world, delivery) == [POISON, SENT]
    assert world.items(delivery)[0].reason.startswith("it cannot be decoded from RLE Lossless")


def test_a_class_that_the_peer_does_not_take_is_set_aside(world: World) -> None:
    with scp(classes=["1.2.840.10008.5.1.4.1.1.2"]) as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", sample("CT_small.dcm"), sample("MR_small.dcm"))
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (FAILED, 0)
    assert states(world, delivery) == [SENT, POISON]
    assert "takes no MR Image Storage" in ended.message


@pytest.mark.parametrize(
    ("status", "state", "course", "attempts"),
    [
        (0xB000, SENT, SUCCEEDED, 1),
        (0xB006, SENT, SUCCEEDED, 1),
        (0xA700, ItemState.FAILED, FAILED, 4),
        (0x0110, ItemState.FAILED, FAILED, 4),
        (0xA900, POISON, FAILED, 1),
        (0xC000, POISON, FAILED, 1),
    ],
)
def test_one_of_three_refused(
    status: int, state: ItemState, course: DeliveryState, attempts: int, world: World
) -> None:
    files = world.images(3)
    refused = str(dcmread(files[1]).SOPInstanceUID)

    def answer(event: evt.Event, number: int) -> int:
        return status if event.request.AffectedSOPInstanceUID == refused else 0

    with scp(answer) as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *files)
        ended = world.ended(delivery)
    assert ended.state is course
    assert states(world, delivery) == [SENT, state, SENT]
    assert f"0x{status:04X}" in world.items(delivery)[1].reason
    sent = [uid for uid, _ in peer.received]
    assert sent.count(refused) == attempts
    assert len(sent) == attempts + 2, "what was sent is not sent again"


def test_out_of_resources_passes(world: World) -> None:
    with scp(lambda event, number: 0xA700 if number < 2 else 0) as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *world.images(3))
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (SUCCEEDED, 1)
    assert len(peer.received) == 5


def test_files_that_can_never_be_sent_do_not_hold_up_the_others(world: World) -> None:
    without_study = image()
    del without_study.StudyInstanceUID
    nameless = write(without_study, world.settings.data_dir / "nameless.dcm")
    with scp() as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *world.images(1), b"no DICOM", nameless, uris=["operators/gone.dcm"])
        ended = world.ended(delivery)
        world.destination("OTHER", peer.port)
        other = deliveries.register(
            world.engine, job_id="x", payload_id="no uuid", agent="ClaraSCU", parameters='"OTHER"', uris=["a"],
            own_agents=("ClaraSCU",),
        )[0]  # fmt: skip
        assert world.ended(other).state is FAILED
    assert (ended.state, ended.retries) == (FAILED, 0)
    assert states(world, delivery) == [SENT, POISON, POISON, POISON]
    reasons = [item.reason for item in world.items(delivery)]
    assert reasons[1:] == ["it is no DICOM file", "it has no Study Instance UID", "there is no such file"]
    assert all(reason in ended.message for reason in reasons[1:])


def test_an_unknown_destination_fails_at_once_and_says_so(world: World) -> None:
    with world.exporting():
        (unknown,) = world.register("NOWHERE", *world.images(1))
        nobody = deliveries.register(
            world.engine, job_id="x", agent="ClaraSCU", parameters="{}", uris=["a"], own_agents=("ClaraSCU",)
        )[0]
        for delivery in (unknown, nobody):
            ended = world.ended(delivery)
            assert (ended.state, ended.retries) == (FAILED, 0)
        assert 'there is no destination "NOWHERE"' in world.look(unknown).message
        assert "name no destination" in world.look(nobody).message


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--refuse", "rejected the association"),
        ("--abort-during", "aborted the association"),
        ("--abort-after", "aborted the association"),
    ],
)
def test_a_dcmtk_that_refuses_or_aborts(
    option: str, reason: str, world: World, storescp: Callable[..., Storescp]
) -> None:
    peer = storescp(option)
    world.destination("PACS", peer.port)
    (delivery,) = world.register("PACS", *world.images(1))
    with world.exporting():
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (FAILED, 3)
    assert reason in ended.message
    assert ended.message.endswith("tried 4 times")


@pytest.mark.parametrize("option", ["--sleep-during", "--sleep-after"])
def test_a_dcmtk_that_is_slow(option: str, make_world: MakeWorld, storescp: Callable[..., Storescp]) -> None:
    """It gets the time that it needs, and no more than is set."""
    patient, hasty = storescp(option, "1"), storescp(option, "60")
    world = make_world(dicom_export_timeout_s=5, dicom_export_retries=0)
    world.destination("PATIENT", patient.port)
    world.destination("HASTY", hasty.port)
    taken, given_up = world.register(["PATIENT", "HASTY"], *world.images(2))
    with world.exporting():
        assert world.ended(taken).state is SUCCEEDED
        ended = world.ended(given_up)
    assert (ended.state, ended.retries) == (FAILED, 0)
    assert "did not answer within 5 s" in ended.message
    assert len(patient.received) == 2


def test_the_wrong_name_is_told_in_words(world: World) -> None:
    with scp(require_called=True) as peer, world.exporting():
        world.destination("PACS", peer.port, ae_title="WRONG")
        (delivery,) = world.register("PACS", *world.images(1))
        ended = world.ended(delivery)
    assert (
        "rejected the association: called AE title not recognised (rejected permanent, service user)" in ended.message
    )


def test_the_wrong_port_is_told_in_words_after_the_retries(world: World) -> None:
    world.destination("PACS", free_port())
    (delivery,) = world.register("PACS", *world.images(2))
    with world.exporting():
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (FAILED, 3)
    assert "cannot be reached: connection refused" in ended.message
    assert {item.state for item in world.items(delivery)} == {ItemState.FAILED}


def test_an_abort_mid_way_leaves_only_the_rest_to_be_sent(world: World) -> None:
    def answer(event: evt.Event, number: int) -> int:
        if number == 2:
            event.assoc.abort()
        return 0

    files = world.images(5)
    with scp(answer) as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *files)
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (SUCCEEDED, 1)
    uids = [uid for uid, _ in peer.received]
    assert len(uids) == 6
    assert len(set(uids)) == 5
    assert peer.associations == 2


def test_a_peer_that_is_killed_mid_way_gets_the_rest_when_it_is_back(
    make_world: MakeWorld, storescp: Callable[..., Storescp]
) -> None:
    world, peer = make_world(dicom_export_retries=100), storescp("+B", "--sleep-during", "1")
    world.destination("PACS", peer.port, concurrency=1)
    files = world.images(3)
    (delivery,) = world.register("PACS", *files)
    with world.exporting():
        eventually(lambda: peer.received)
        peer.kill()
        eventually(lambda: world.look(delivery).message)
        peer.options = ("+B",)
        peer.start()
        ended = world.ended(delivery)
    assert ended.state is SUCCEEDED
    assert ended.retries >= 1
    uids = {str(dcmread(path, force=True).get("SOPInstanceUID")) for path in peer.received}
    assert uids >= {str(dcmread(file).SOPInstanceUID) for file in files}


@pytest.mark.parametrize("head", [b"", b"\x02\x00\x00\x00\x10\x00"], ids=["silence", "half a PDU"])
def test_a_peer_that_never_answers_has_its_time(head: bytes, make_world: MakeWorld) -> None:
    world = make_world(dicom_export_timeout_s=0.3, dicom_export_retries=0)
    with silent(head) as port, world.exporting():
        world.destination("PACS", port)
        (delivery,) = world.register("PACS", *world.images(1))
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert "did not answer within 0.3 s" in ended.message


def test_a_peer_that_hangs_in_a_store_has_its_time(make_world: MakeWorld) -> None:
    world, go_on = make_world(dicom_export_timeout_s=0.5, dicom_export_retries=0), threading.Event()

    def answer(event: evt.Event, number: int) -> int:
        go_on.wait(20)
        return 0

    with scp(answer) as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *world.images(1))
        ended = world.ended(delivery)
        go_on.set()
    assert "did not answer within 0.5 s" in ended.message


def test_one_association_serves_what_comes_soon(world: World) -> None:
    with scp() as peer, world.exporting():
        world.destination("PACS", peer.port, concurrency=1)
        for _ in range(3):
            (delivery,) = world.register("PACS", *world.images(2))
            assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.received) == 6
    assert peer.associations == 1


def test_a_rested_association_that_the_peer_ended_is_no_failure(world: World) -> None:
    ends: list[evt.Event] = []

    def answer(event: evt.Event, number: int) -> int:
        ends.append(event)
        return 0

    with scp(answer) as peer, world.exporting():
        world.destination("PACS", peer.port, concurrency=1)
        for _ in range(2):
            (delivery,) = world.register("PACS", *world.images(1))
            assert world.ended(delivery).state is SUCCEEDED
            assert world.look(delivery).retries == 0
            ends[-1].assoc.abort()
    assert peer.associations == 2


def test_more_classes_than_one_association_takes_are_split(world: World) -> None:
    from pynetdicom.sop_class import _STORAGE_CLASSES

    classes = [str(uid) for uid in _STORAGE_CLASSES.values()][:90]
    files = [
        write(image(4, seed=number, sop_class=uid), world.settings.data_dir / f"{number}.dcm")
        for number, uid in enumerate(classes)
    ]
    with scp(classes=classes) as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", *files)
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.received) == 90
    assert peer.associations == 2


def test_it_calls_by_the_names_of_the_destination(world: World) -> None:
    with scp() as peer, world.exporting():
        world.destination("PACS", peer.port, ae_title="SOMEBODY", calling_ae="MYSELF")
        (delivery,) = world.register("PACS", *world.images(1))
        assert world.ended(delivery).state is SUCCEEDED
    assert peer.titles == [("MYSELF", "SOMEBODY")]


def test_a_paused_destination_waits_and_a_mended_one_is_tried_at_once(world: World) -> None:
    with scp() as peer, world.exporting():
        world.destination("PACS", free_port(), paused=True)
        (delivery,) = world.register("PACS", *world.images(1))
        (marker,) = world.register("NOWHERE", *world.images(1))
        world.ended(marker)  # the exporter has looked
        assert world.look(delivery).state is DeliveryState.PENDING
        assert world.look(delivery).retries == 0
        dicom_config.update_destination(world.engine, "PACS", paused=False, port=peer.port)
        assert world.ended(delivery).state is SUCCEEDED


def test_large_files_arrive_whole(world: World, tmp_path: Path) -> None:
    path = write(image(2048), tmp_path / "large.dcm")  # 8 MiB: many PDUs of what the peer takes
    with scp() as peer, world.exporting():
        world.destination("PACS", peer.port)
        (delivery,) = world.register("PACS", path)
        assert world.ended(delivery).state is SUCCEEDED
    assert peer.received[0][1] == data_set_bytes(path)
