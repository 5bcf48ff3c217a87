"""Who saves a block in Prefect has a destination or a source, live; a real Prefect server keeps the blocks."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from platform_fixture import free_port
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_fixture import OwnPrefect, prefect  # noqa: F401
from pydantic import SecretStr
from services.dicom.export import peers
from services.dicom.export.export_world import MakeWorld, World
from waiting import eventually

from clara_flow.blocks.dicom_node import DicomNode, saved_nodes
from clara_flow.deployments.register import register_blocks
from clara_flow.records import dicom_config
from clara_flow.records.dicom_models import DeliveryState, DestinationKind
from clara_flow.services.dicom.block_nodes import BlockNodes, unused_blocks
from clara_flow.services.dicom.credentials import secret_of
from clara_flow.services.dicom.heartbeats import Heartbeats, read_all


class Blocks:
    """Blocks of a Prefect server, and what follows them."""

    def __init__(self, server: OwnPrefect, world: World, folder: Path) -> None:
        self.server, self.world, self.folder = server, world, folder
        self.follower = self.new_follower(server.api_url)

    def new_follower(self, api_url: str) -> BlockNodes:
        """One that a new adapter has."""
        return BlockNodes(self.world.engine, api_url, Heartbeats(self.folder), look_s=0.1)

    def save(self, name: str, **facts: Any) -> None:
        """As `DicomNode(...).save` does, and the UI."""
        with temporary_settings({PREFECT_API_URL: self.server.api_url}):
            DicomNode(**facts).save(name, overwrite=True)

    def delete(self, name: str) -> None:
        with temporary_settings({PREFECT_API_URL: self.server.api_url}):
            DicomNode.delete(name)

    def unused(self) -> dict[str, str]:
        """As health, doctor and status read it."""
        return unused_blocks(read_all(self.folder))

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """The loop runs."""
        stop = threading.Event()
        thread = threading.Thread(target=self.follower.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def blocks(prefect: OwnPrefect, make_world: MakeWorld, engine: sa.Engine, tmp_path: Path) -> Iterator[Blocks]:  # noqa: F811
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE dicom_sources"))
    register_blocks(prefect.api_url)
    made = Blocks(prefect, make_world(prefect_api_url=prefect.api_url), tmp_path / "heartbeats")
    yield made
    for document in prefect.post("/block_documents/filter", {}):
        httpx.delete(f"{prefect.api_url}/block_documents/{document['id']}").raise_for_status()
    EventsWorker.drain_all(timeout=10, at_exit=False)  # blocks tell of their use by a worker kept for the process


def names(world: World) -> list[str]:
    return [row.name for row in dicom_config.list_destinations(world.engine)]


def test_a_result_goes_to_a_block_that_was_saved_and_to_where_it_is_moved(blocks: Blocks) -> None:
    world = blocks.world
    with peers.scp() as pacs, world.exporting(), blocks.followed():
        blocks.save("archive", is_destination=True, ae_title="PEER", host="127.0.0.1", port=free_port())
        eventually(lambda: names(world) == ["archive"])
        (delivery,) = world.register("ARCHIVE", *world.images(1))
        eventually(lambda: world.look(delivery).retries > 0 or world.look(delivery).message)
        blocks.save("archive", is_destination=True, ae_title="PEER", host="127.0.0.1", port=pacs.port)
        eventually(lambda: dicom_config.get_destination(world.engine, "archive").port == pacs.port)
        if world.ended(delivery).state is DeliveryState.FAILED:  # it used up its tries before the block was mended
            (delivery,) = world.register("ARCHIVE", *world.images(1))
        assert world.ended(delivery).state is DeliveryState.SUCCEEDED
        assert len(pacs.received) == 1
        blocks.delete("archive")
        eventually(lambda: names(world) == [])
        (late,) = world.register("archive", *world.images(1))
        assert "there is no destination" in world.ended(late).message


def test_a_block_with_a_url_and_a_login_is_a_stow_destination(blocks: Blocks) -> None:
    blocks.save(
        "cloud", is_destination=True, is_source=True, ae_title="CLOUD", host="10.1.2.3",
        url="https://pacs.example/dicom-web/", username="user", password=SecretStr("planted"),
    )  # fmt: skip
    blocks.follower.look()
    row = dicom_config.get_destination(blocks.world.engine, "cloud")
    assert (row.kind, row.url, row.ae_title) == (DestinationKind.STOW, "https://pacs.example/dicom-web", "")
    assert secret_of(blocks.world.settings, row.credentials) == "user:planted"
    (source,) = dicom_config.list_sources(blocks.world.engine)
    assert (source.ae_title, source.host, source.block) == ("CLOUD", "10.1.2.3", "cloud")
    saved = saved_nodes(blocks.server.api_url)
    assert saved is not None
    assert "planted" not in repr(saved) + repr(saved.nodes[0].node and saved.nodes[0].node.secret())
    blocks.save("cloud", username="user", password=SecretStr("planted"))  # a login again, and nothing else
    blocks.follower.look()
    assert names(blocks.world) == []
    assert dicom_config.list_sources(blocks.world.engine) == []


def test_a_block_that_is_not_used_is_told_with_the_reason(blocks: Blocks, caplog: pytest.LogCaptureFixture) -> None:
    world = blocks.world
    world.destination("Archive", 104)
    peer = {"ae_title": "PEER", "host": "127.0.0.1"}
    blocks.save("archive", is_destination=True, port=11112, **peer)
    blocks.save("ct-1", is_source=True, **peer)
    blocks.save("ct-2", is_source=True, **peer)
    blocks.save("no-port", is_destination=True, **peer)
    blocks.save("two-ways", token=SecretStr("planted"))
    (two_ways,) = [one for one in blocks.server.post("/block_documents/filter", {}) if one["name"] == "two-ways"]
    body = {"data": {"username": "user"}, "merge_existing_data": True}  # the UI checks each field by itself alone
    url = f"{blocks.server.api_url}/block_documents/{two_ways['id']}"
    httpx.patch(url, json=body).raise_for_status()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            blocks.follower.look()
    unused = blocks.unused()
    assert list(unused) == ["archive", "ct-2", "no-port", "two-ways"]
    assert unused["archive"].startswith("there is a destination 'archive' already, made by REST or command line")
    assert unused["ct-2"] == "the block 'ct-1' is 'PEER' already"
    assert "a port is 1 to 65535, not None" in unused["no-port"]
    assert "not both" in unused["two-ways"]
    warnings = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert len(warnings) == len(unused)  # once each
    assert "planted" not in caplog.text + json.dumps(unused)
    assert dicom_config.get_destination(world.engine, "archive").port == 104
    dicom_config.delete_destination(world.engine, "archive")
    blocks.follower.look()
    assert dicom_config.get_destination(world.engine, "archive").port == 11112


def test_a_prefect_that_is_away_or_another_one_takes_nothing_away(
    blocks: Blocks, caplog: pytest.LogCaptureFixture
) -> None:
    world = blocks.world
    blocks.save("archive", is_destination=True, ae_title="PEER", host="127.0.0.1", port=104)
    blocks.follower.look()
    away = blocks.new_follower(f"http://127.0.0.1:{free_port()}/api")
    with caplog.at_level(logging.INFO, "clara_flow"):
        for _ in range(2):
            away.look()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("clara_flow")]
    assert len(ours) == 1
    assert "it did not give its blocks" in ours[0]
    assert names(world) == ["archive"]
    blocks.server.wipe()
    blocks.follower.look()  # it does not know the type yet
    assert names(world) == ["archive"]
    register_blocks(blocks.server.api_url)
    blocks.follower.look()
    assert dicom_config.get_destination(world.engine, "archive").block == ""  # as if made by hand
