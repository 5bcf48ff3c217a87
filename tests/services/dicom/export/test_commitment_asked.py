"""Storage commitment: on the same association, by a report that comes another way, refused, or never."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import evt
from services.dicom.export.export_world import MakeWorld, World
from services.dicom.export.peers import scp
from waiting import eventually

from clara_flow.records.dicom_models import DeliveryState, ItemState
from clara_flow.services.dicom.export import commitment, delivering, destination_queue
from clara_flow.services.dicom.export.commitment import delivery_of, new_transaction, note_report

SUCCEEDED, FAILED = DeliveryState.SUCCEEDED, DeliveryState.FAILED


class Committer:
    """Answers N-ACTION, and reports on the same association unless it is told not to."""

    def __init__(self, status: int = 0, failed: int | None = None, reports: bool = True) -> None:
        self.status, self.failed, self.reports = status, failed, reports
        self.requests: list[Dataset] = []

    def __call__(self, event: evt.Event) -> tuple[int, Any]:
        request = event.action_information
        self.requests.append(request)
        if self.reports and self.status == 0:
            threading.Thread(target=self.report, args=(event.assoc, request)).start()
        return self.status, None

    def report(self, association: Any, request: Dataset) -> None:
        information = Dataset()
        information.TransactionUID = request.TransactionUID
        references = list(request.ReferencedSOPSequence)
        if self.failed is not None and len(self.requests) == 1:
            refused = references.pop()
            refused.FailureReason = self.failed
            information.FailedSOPSequence = [refused]
        information.ReferencedSOPSequence = references
        association.send_n_event_report(
            information, 2 if self.failed else 1, "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
        )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are not waited for long."""
    monkeypatch.setattr(commitment, "WAIT_S", 0.3)
    monkeypatch.setattr(destination_queue, "COMMITMENT_S", 0.2)


def test_what_is_sent_is_committed_on_the_same_association(world: World) -> None:
    committer = Committer()
    with scp(commitment=committer) as peer, world.exporting():
        world.destination("PACS", peer.port, storage_commitment=True)
        files = world.images(3)
        (delivery,) = world.register("PACS", *files)
        assert world.ended(delivery).state is SUCCEEDED
    assert {item.state for item in world.items(delivery)} == {ItemState.COMMITTED}
    (request,) = committer.requests
    assert {item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence} == {
        dcmread(file).SOPInstanceUID for file in files
    }


def test_what_is_not_committed_is_sent_again(world: World) -> None:
    with scp(commitment=Committer(failed=0x0112)) as peer, world.exporting():
        world.destination("PACS", peer.port, storage_commitment=True)
        (delivery,) = world.register("PACS", *world.images(2))
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (SUCCEEDED, 1)
    assert {item.state for item in world.items(delivery)} == {ItemState.COMMITTED}
    assert len(peer.received) == 3


def test_a_report_may_come_another_way(world: World) -> None:
    committer = Committer(reports=False)
    with scp(commitment=committer) as peer, world.exporting():
        world.destination("PACS", peer.port, storage_commitment=True)
        (delivery,) = world.register("PACS", *world.images(2))
        eventually(lambda: committer.requests)
        request = committer.requests[0]
        uids = [str(item.ReferencedSOPInstanceUID) for item in request.ReferencedSOPSequence]
        assert note_report(world.engine, str(request.TransactionUID), uids, {})
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.received) == 2


@pytest.mark.usefixtures("impatient")
def test_a_report_that_comes_late_ends_the_waiting_at_once(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination_queue, "COMMITMENT_S", 3600)
    world, committer = make_world(), Committer(reports=False)
    with scp(commitment=committer) as peer, world.exporting():
        world.destination("PACS", peer.port, storage_commitment=True)
        (delivery,) = world.register("PACS", *world.images(1))
        eventually(lambda: world.look(delivery).retries == 1)
        assert "1 not confirmed by storage commitment" in world.look(delivery).message
        request = committer.requests[0]
        uid = str(request.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        assert note_report(world.engine, str(request.TransactionUID), [uid], {})
        assert world.ended(delivery).state is SUCCEEDED
    assert len(peer.received) == 1, "what is sent is not sent again"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("committer", "reason"),
    [
        (Committer(reports=False), "not confirmed by storage commitment"),
        (Committer(status=0x0110), "refused the request for commitment: 0x0110 processing failure"),
        (None, "takes no requests for storage commitment"),
    ],
)
def test_without_a_report_it_fails_with_a_reason(
    committer: Committer | None, reason: str, make_world: MakeWorld
) -> None:
    world = make_world(dicom_export_retries=1)
    with scp(commitment=committer) as peer, world.exporting():
        world.destination("PACS", peer.port, storage_commitment=True)
        (delivery,) = world.register("PACS", *world.images(1))
        ended = world.ended(delivery)
    assert (ended.state, ended.retries) == (FAILED, 1)
    assert reason in ended.message
    assert [item.state for item in world.items(delivery)] == [ItemState.SENT]
    assert len(peer.received) == 1


@given(st.uuids())
def test_a_transaction_leads_back_to_its_delivery(delivery_id: uuid.UUID) -> None:
    transaction = new_transaction(delivery_id)
    assert len(transaction) <= 64
    assert delivery_of(transaction) == delivery_id


@given(st.text(max_size=80) | st.from_regex(r"2\.25\.[0-9]{0,60}(\.[0-9]{0,5})?", fullmatch=True))
def test_other_transactions_lead_nowhere_or_to_a_uuid(text: str) -> None:
    assert delivery_of(text) is None or isinstance(delivery_of(text), uuid.UUID)


def test_a_report_of_nothing_of_ours_changes_nothing(world: World) -> None:
    assert not note_report(world.engine, "1.2.3", ["1.2"], {})
    assert not note_report(world.engine, new_transaction(uuid.uuid4()), ["1.2"], {})
    assert {ItemState.COMMITTED} <= delivering.DONE
