"""STOW-RS to a DICOMweb server: ten files a request, each with its own outcome."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydicom import dcmread
from services.dicom.export.export_world import MakeWorld, World
from services.dicom.export.peers import silent
from services.dicom.export.stow_peer import stored, stow_peer

from clara_flow.records.dicom_models import DeliveryState, ItemState

SUCCEEDED, FAILED = DeliveryState.SUCCEEDED, DeliveryState.FAILED
AGENT = "DICOMweb"


def states(world: World, delivery: Any) -> list[ItemState]:
    return [item.state for item in world.items(delivery)]


def test_files_go_as_they_are_ten_in_a_request(world: World) -> None:
    files = world.images(23)
    with stow_peer() as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *files, agent=AGENT)
        assert world.ended(delivery).state is SUCCEEDED
    assert [len(request) for request in peer.requests] == [10, 10, 3]
    received = {content for request in peer.requests for _, content in request}
    assert received == {file.read_bytes() for file in files}
    assert peer.headers[0]["accept"] == "application/dicom+json"
    assert 'type="application/dicom"' in peer.headers[0]["content-type"]
    assert "content-length" in peer.headers[0]


def test_each_failure_is_told_and_only_that_is_sent_again(world: World) -> None:
    files = world.images(4)
    uids = [str(dcmread(file).SOPInstanceUID) for file in files]

    def answer(sent: list[str], number: int) -> tuple[int, Any]:
        failed = {uids[1]: 0xA700, uids[2]: 0xA900} if number == 0 else {}
        return 202 if failed else 200, stored(sent, failed)

    with stow_peer(answer) as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *files, agent=AGENT)
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (FAILED, 1)
    assert states(world, delivery) == [ItemState.SENT, ItemState.SENT, ItemState.POISON, ItemState.SENT]
    assert [uid for uid, _ in peer.requests[1]] == [uids[1]]
    assert "0xA900 data set does not match its SOP class" in ended.message


def test_silence_about_a_file_is_success_with_200_alone(world: World) -> None:
    def answer(sent: list[str], number: int) -> tuple[int, Any]:
        return (202, {}) if number == 0 else (200, b"")

    with stow_peer(answer) as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *world.images(2), agent=AGENT)
        ended = world.ended(delivery)
    assert (ended.state, ended.retries, len(peer.requests)) == (SUCCEEDED, 1, 2)


def test_a_page_for_people_is_no_success(world: World) -> None:
    with stow_peer(lambda sent, number: (200, b"<html>Welcome</html>")) as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *world.images(1), agent=AGENT)
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert "200 OK, but not in DICOMweb's way: is its URL right?" in ended.message


def test_one_file_that_is_refused_does_not_refuse_the_others(world: World) -> None:
    files = world.images(3)
    bad = str(dcmread(files[1]).SOPInstanceUID)

    def answer(sent: list[str], number: int) -> tuple[int, Any]:
        return (400, b"what is that?") if bad in sent else (200, stored(sent))

    with stow_peer(answer) as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *files, agent=AGENT)
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (FAILED, 0)
    assert states(world, delivery) == [ItemState.SENT, ItemState.POISON, ItemState.SENT]
    assert "400 Bad Request" in ended.message
    assert [len(request) for request in peer.requests] == [3, 1, 1, 1]


@pytest.mark.parametrize("status", [500, 503, 429, 404, 401])
def test_a_server_that_cannot_now_is_tried_again(status: int, world: World) -> None:
    def answer(sent: list[str], number: int) -> tuple[int, Any]:
        return (status, b"") if number == 0 else (200, stored(sent))

    with stow_peer(answer) as peer, world.exporting():
        world.stow("WEB", peer.url)
        (delivery,) = world.register("WEB", *world.images(1), agent=AGENT)
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (SUCCEEDED, 1)
    assert len(peer.requests) == 2


@pytest.mark.parametrize(
    ("secret", "header"),
    [("user:pass:word", "Basic " + base64.b64encode(b"user:pass:word").decode()), ("a.b.c", "Bearer a.b.c")],
)
def test_credentials_come_from_the_environment(
    secret: str, header: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACS_SECRET", secret)
    with stow_peer() as peer, world.exporting():
        world.stow("WEB", peer.url, credentials="PACS_SECRET")
        (delivery,) = world.register("WEB", *world.images(1), agent=AGENT)
        assert world.ended(delivery).state is SUCCEEDED
    assert peer.headers[0]["authorization"] == header


def test_missing_credentials_are_said_and_nothing_is_sent(make_world: MakeWorld) -> None:
    world = make_world(dicom_export_retries=0)
    with stow_peer() as peer, world.exporting():
        world.stow("WEB", peer.url, credentials="NOT_THERE")
        (delivery,) = world.register("WEB", *world.images(1), agent=AGENT)
        ended = world.ended(delivery)
    assert ended.state is FAILED
    assert "NOT_THERE" in ended.message
    assert peer.requests == []


def test_a_server_that_never_answers_has_its_time(make_world: MakeWorld) -> None:
    world = make_world(dicom_export_retries=0, dicom_export_timeout_s=0.3)
    with silent() as port, world.exporting():
        world.stow("WEB", f"http://127.0.0.1:{port}")
        (delivery,) = world.register("WEB", *world.images(1), agent=AGENT)
        ended = world.ended(delivery)
    assert "did not answer within 0.3 s" in ended.message
