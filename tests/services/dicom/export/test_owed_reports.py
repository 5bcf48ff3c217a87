"""Reports of storage commitment on associations that we open, to peers that asked and did not wait."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification
from services.dicom.export.export_world import MakeWorld, World
from services.dicom.export.peers import free_port, scp, silent
from sqlmodel import Session
from waiting import eventually

from clara_flow.records import commitment_reports, dicom_config
from clara_flow.records.commitment_reports import Owed
from clara_flow.records.dicom_models import CommitmentReport, DeliveryState, Destination, DestinationKind
from clara_flow.services.dicom.export import owed_reports
from clara_flow.services.dicom.export.owed_reports import NOBODY, SEVERAL, destination_of
from clara_flow.services.dicom.heartbeats import read_all
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.wire.sources import HostNames, parse_address

MR = "1.2.840.10008.5.1.4.1.1.4"


class Asker:
    """A peer that has asked, and listens for the report."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.told: list[Dataset] = []
        self.titles: list[tuple[str, str]] = []
        self.roles: list[tuple[bool | None, bool | None]] = []

    @property
    def transactions(self) -> list[str]:
        return [str(one.TransactionUID) for one in self.told]


@contextlib.contextmanager
def asker(
    answer: Callable[[Asker], int] = lambda peer: 0x0000,
    *,
    port: int | None = None,
    title: str = "MODALITY",
    negotiates: bool = True,
    commitment: bool = True,
) -> Iterator[Asker]:
    """Answers each report with the status that `answer` returns."""
    peer = Asker(port or free_port())
    ae = AE(ae_title=title)
    ae.add_supported_context(Verification)
    if commitment:
        roles = {"scu_role": False, "scp_role": True} if negotiates else {}
        ae.add_supported_context(StorageCommitmentPushModel, **roles)

    def report(event: evt.Event) -> tuple[int, None]:
        peer.told.append(event.event_information)
        peer.titles.append((event.assoc.requestor.ae_title, event.assoc.requestor.primitive.called_ae_title))
        roles = event.assoc.requestor.role_selection.values()
        peer.roles += [(role.scu_role, role.scp_role) for role in roles]
        return answer(peer), None

    server = ae.start_server(("127.0.0.1", peer.port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)])
    try:
        yield peer
    finally:
        server.shutdown()


def owe(world: World, transaction: str = "1.2.9", *, calling: str = "MODALITY", peer: str = "127.0.0.1") -> uuid.UUID:
    """A report that is due, of two instances that nobody has."""
    row = CommitmentReport(
        id=uuid.uuid4(), association=uuid.uuid4(), calling_ae=calling, called_ae="BRAIN", peer=peer,
        transaction_uid=transaction, asked=[[MR, ["1.2.3.1", "1.2.3.2"]]], is_whole=True,
        not_before=datetime.now(UTC) - timedelta(seconds=1), created=datetime.now(UTC),
    )  # fmt: skip
    with Session(world.engine, expire_on_commit=False) as session:
        session.add(row)
        session.commit()
    return row.id


def rows(world: World) -> list[CommitmentReport]:
    return commitment_reports.list_reports(world.engine)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed_reports, "FIRST_PAUSE_S", 0.1)


@pytest.mark.parametrize("negotiates", [True, False], ids=["roles", "no roles"])
def test_a_peer_that_did_not_wait_is_told(world: World, negotiates: bool) -> None:
    with asker(negotiates=negotiates) as peer, world.exporting():
        world.destination("MOD1", peer.port, ae_title="MODALITY", calling_ae="ANOTHER")
        owe(world)
        eventually(lambda: not rows(world))
    [told] = peer.told
    assert told.TransactionUID == "1.2.9"
    assert [(item.ReferencedSOPInstanceUID, item.FailureReason) for item in told.FailedSOPSequence] == [
        ("1.2.3.1", 0x0112),
        ("1.2.3.2", 0x0112),
    ]
    assert peer.titles == [("BRAIN", "MODALITY")], "it knows us by the title that it had called"
    assert peer.roles == [(False, True)]


def test_it_is_told_as_often_as_it_takes(world: World) -> None:
    statuses = iter([0x0110, 0x0211, 0x0000])
    with asker(lambda peer: next(statuses)) as peer, world.exporting():
        world.destination("MOD1", peer.port, ae_title="MODALITY")
        owe(world)
        eventually(lambda: not rows(world))
    assert peer.transactions == ["1.2.9"] * 3


def test_one_that_is_refused_keeps_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owed_reports, "FIRST_PAUSE_S", 3600)
    with asker(lambda peer: 0x0112 if peer.transactions[-1] == "1.2.8" else 0) as peer, world.exporting():
        world.destination("MOD1", peer.port, ae_title="MODALITY")
        refused = owe(world, "1.2.8")
        owe(world, "1.2.9")
        eventually(lambda: [row.id for row in rows(world)] == [refused])
        eventually(lambda: "0x0112 no such SOP instance" in rows(world)[0].message)
    assert sorted(peer.transactions) == ["1.2.8", "1.2.9"]


def test_a_peer_that_is_away_is_told_when_it_is_back(world: World) -> None:
    port = free_port()
    with world.exporting():
        world.destination("MOD1", port, ae_title="MODALITY")
        owe(world, "1.2.8")
        owe(world, "1.2.9")
        eventually(lambda: any("cannot be reached" in row.message for row in rows(world)))
        with asker(port=port) as peer:
            eventually(lambda: not rows(world))
    assert sorted(peer.transactions) == ["1.2.8", "1.2.9"]


def test_a_peer_that_takes_no_reports(world: World) -> None:
    with asker(commitment=False) as peer, world.exporting():
        world.destination("MOD1", peer.port, ae_title="MODALITY")
        owe(world)
        eventually(lambda: "takes no reports of storage commitment" in rows(world)[0].message)


def test_a_peer_that_hangs_delays_no_other(make_world: MakeWorld) -> None:
    world = make_world(dicom_export_timeout_s=30)
    with silent() as hanging, asker(title="MOD2") as peer:
        world.destination("MOD1", hanging, ae_title="MOD1")
        world.destination("MOD2", peer.port, ae_title="MOD2")
        owe(world, "1.2.8", calling="MOD1")
        with world.exporting():
            eventually(lambda: rows(world)[0].attempts == 1)
            owe(world, "1.2.9", calling="MOD2")
            eventually(lambda: [row.calling_ae for row in rows(world)] == ["MOD1"])
    assert peer.transactions == ["1.2.9"]


def test_deliveries_go_on_beside_reports_that_fail(world: World) -> None:
    with scp() as pacs, world.exporting():
        world.destination("PACS", pacs.port, ae_title="MODALITY")
        owe(world)
        eventually(lambda: rows(world)[0].attempts >= 1)
        (delivery,) = world.register("PACS", *world.images(2))
        assert world.ended(delivery).state is DeliveryState.SUCCEEDED


def test_a_destination_that_pauses_is_told_later(world: World) -> None:
    with asker() as peer, world.exporting() as exporter:
        world.destination("MOD1", peer.port, ae_title="MODALITY", paused=True)
        owe(world)
        eventually(lambda: rows(world)[0].destination == "MOD1")
        eventually(lambda: "mod1" in exporter._queues and exporter._queues["mod1"]._owes_reports)
        assert peer.told == []
        dicom_config.update_destination(world.engine, "MOD1", paused=False)
        eventually(lambda: not rows(world))
    assert peer.transactions == ["1.2.9"]


def test_without_a_destination_it_waits_for_one_and_says_so(world: World) -> None:
    def facts() -> Any:
        beats = {beat.name: beat.facts for beat in read_all(Places.of(world.settings).heartbeats)}
        return beats.get("exporter", {})

    with asker() as peer, world.exporting():
        owe(world)
        eventually(lambda: rows(world)[0].message == NOBODY)
        eventually(lambda: facts().get("reports_without_destination") == 1)
        world.destination("MOD1", peer.port, ae_title="MODALITY")
        eventually(lambda: not rows(world))
        eventually(lambda: facts().get("reports_without_destination") == 0)


def test_what_nobody_can_be_told_is_dropped_in_the_end(make_world: MakeWorld) -> None:
    world = make_world(dicom_commitment_report_retention_s=0)
    owe(world)
    with world.exporting():
        eventually(lambda: not rows(world))


def _destination(name: str, title: str, host: str, **more: Any) -> Destination:
    return Destination(name=name, ae_title=title, host=host, port=104, **more)


@pytest.mark.parametrize(
    ("calling", "peer", "expected"),
    [
        ("ONE", "192.0.2.99", ("ONE", "")),  # a title of one destination: its address may be another
        ("TWO", "192.0.2.2", ("TWO-B", "")),
        ("TWO", "2001:db8::2", ("TWO-C", "")),
        ("TWO", "192.0.2.99", ("", SEVERAL)),
        ("TWO", "nonsense", ("", SEVERAL)),
        ("one", "192.0.2.1", ("", NOBODY)),
        ("WEB", "192.0.2.1", ("", NOBODY)),
    ],
)
def test_which_destination_is_the_peer(calling: str, peer: str, expected: tuple[str, str]) -> None:
    destinations = [
        _destination("ONE", "ONE", "192.0.2.1"),
        _destination("TWO-A", "TWO", "192.0.2.1"),
        _destination("TWO-B", "TWO", "192.0.2.2"),
        _destination("TWO-C", "TWO", "two.example.org"),
        _destination("WEB", "WEB", "", kind=DestinationKind.STOW, url="http://192.0.2.1/"),
    ]
    report = Owed(uuid.uuid4(), calling, peer, "", "", True)

    def look_up(name: str) -> Any:
        assert name == "two.example.org"
        return frozenset({parse_address("2001:db8::2")})

    assert destination_of(report, destinations, HostNames(look_up)) == expected


PROGRAM = """
import sys, threading
from pathlib import Path
from clara_flow.deployments.trigger import House
from clara_flow.infra.images.catalog import Catalog
from clara_flow.records.database import connect
from clara_flow.services.dicom.export.exporter import Exporter
from clara_flow.settings import load_settings
settings = load_settings(data_dir=Path(sys.argv[1]), dicom_export_timeout_s=1, poll_s=0.5)
house = House(settings=settings, engine=connect(sys.argv[2]), catalog=Catalog({}, {}))
Exporter(house).run(threading.Event())
"""


def test_kills_while_it_is_told_lose_nothing(world: World, database_url: str) -> None:
    """The exporter dies between the report and its acknowledgement: the row stays, and is told again."""
    heard, go_on = threading.Semaphore(0), threading.Event()

    def answer(peer: Asker) -> int:
        heard.release()
        assert go_on.wait(30)
        return 0

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(world.settings.data_dir), database_url])

    with asker(answer) as peer:
        world.destination("MOD1", peer.port, ae_title="MODALITY")
        report = owe(world)
        process = start()
        try:
            assert heard.acquire(timeout=60)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert [(row.id, row.attempts) for row in rows(world)] == [(report, 1)]
        go_on.set()
        process = start()
        try:
            eventually(lambda: not rows(world), within_s=60)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert peer.transactions == ["1.2.9"] * 2
