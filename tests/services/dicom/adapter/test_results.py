"""Results find their way to destinations, and those that misbehave keep none of the others'."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from dicom_peers import data_set_bytes, produced, study_of
from prefect.events.worker import EventsWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from services.dicom.adapter.adapter_world import AdapterWorld, answering, registering
from services.dicom.export import peers
from waiting import eventually

from clara_flow.blocks.dicom_node import DicomNode
from clara_flow.records import dicom_config
from clara_flow.records.delivery_queries import list_items
from clara_flow.records.dicom_models import DeliveryState, ItemState

CT = "1.2.840.10008.5.1.4.1.1.2"


@contextmanager
def mute() -> Iterator[int]:
    """A peer that takes associations and instances, and answers none."""
    ended = threading.Event()

    def answer(event: object, number: int) -> int:
        del event, number
        ended.wait(60)
        return 0x0110

    with peers.scp(answer, classes=[CT]) as peer:
        try:
            yield peer.port
        finally:
            ended.set()


def pipeline_to(adapter: AdapterWorld, *destinations: str) -> str:
    return adapter.pipeline(answering(), registering("answer", *destinations))


def test_a_result_arrives_once(adapter: AdapterWorld) -> None:
    with peers.scp(classes=[CT]) as pacs:
        destination = adapter.destination(pacs.port)
        aetitle, study = adapter.aetitle(pipeline_to(adapter, destination)), study_of(3)
        adapter.send(aetitle, study)
        (job,) = adapter.completed(aetitle, 1)
        eventually(lambda: adapter.deliveries(destination)[0].state is DeliveryState.SUCCEEDED, within_s=20)
        (delivery,) = adapter.deliveries(destination)
    assert delivery.job_id == str(job.id)
    assert {item.state for item in list_items(adapter.engine, delivery)} == {ItemState.SENT}
    expected = {}
    for one in study:
        one.SOPInstanceUID = produced(one.SOPInstanceUID)
        expected[str(one.SOPInstanceUID)] = data_set_bytes(one)
    assert dict(pacs.received) == expected
    assert len(pacs.received) == 3


@pytest.mark.parametrize("silence", [peers.silent, mute], ids=["takes connections", "takes associations"])
def test_a_destination_that_never_answers_keeps_nobody(adapter: AdapterWorld, silence: type) -> None:
    with silence() as port, peers.scp(classes=[CT]) as pacs:
        bad, good = adapter.destination(port), adapter.destination(pacs.port)
        first, second = (adapter.aetitle(pipeline_to(adapter, *to)) for to in ([bad], [bad, good]))
        for _ in range(3):
            adapter.send(first, study_of(1))
        adapter.completed(first, 3)
        adapter.send(second, study_of(1))
        adapter.completed(second, 1)
        eventually(lambda: adapter.deliveries(good)[0].state is DeliveryState.SUCCEEDED, within_s=20)
        assert len(adapter.deliveries(bad)) == 4
        assert DeliveryState.SUCCEEDED not in {one.state for one in adapter.deliveries(bad)}
        eventually(lambda: any(one.message for one in adapter.deliveries(bad)), within_s=30)
    assert len(pacs.received) == 1


def test_a_result_goes_to_a_block_that_somebody_saves_in_prefect(adapter: AdapterWorld) -> None:
    """While the platform runs: nothing is started again."""
    name = f"pacs-{uuid.uuid4().hex[:8]}"
    with peers.scp(classes=[CT]) as pacs, temporary_settings({PREFECT_API_URL: adapter.handle.prefect_api_url}):
        DicomNode(is_destination=True, ae_title="PEER", host="127.0.0.1", port=pacs.port).save(name)
        eventually(lambda: name in {row.name for row in dicom_config.list_destinations(adapter.engine)}, within_s=60)
        aetitle = adapter.aetitle(pipeline_to(adapter, name))
        adapter.send(aetitle, study_of(1))
        adapter.completed(aetitle, 1)
        eventually(lambda: adapter.deliveries(name)[0].state is DeliveryState.SUCCEEDED, within_s=20)
        DicomNode.delete(name)
        eventually(
            lambda: name not in {row.name for row in dicom_config.list_destinations(adapter.engine)}, within_s=60
        )
        EventsWorker.drain_all(timeout=10, at_exit=False)
    assert len(pacs.received) == 1
