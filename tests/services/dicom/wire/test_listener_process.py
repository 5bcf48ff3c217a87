"""A listener as a process: two on one port, limits that they share, and how they end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from services.dicom.wire.listener_processes import Processes
from services.dicom.wire.scripted_peer import ABORT, ScriptedPeer, associate_rq, data_pdu, data_set, store_rq
from waiting import eventually

from clara_flow.services.dicom.journal_entries import Closed, Stored
from clara_flow.services.dicom.listener_config import ListenerConfig
from clara_flow.services.dicom.wire.listener import ListenerOptions


@pytest.fixture
def processes(tmp_path: Path, config: ListenerConfig, options: ListenerOptions) -> Iterator[Processes]:
    """Starts them, and ends them after the test."""
    config.write(options.config)
    with ExitStack() as stack:
        yield Processes(tmp_path, stack)


def test_sigterm_lets_the_instance_that_arrives_finish(processes: Processes) -> None:
    process = processes.start()
    data = data_set()
    with ScriptedPeer(processes.port) as busy, ScriptedPeer(processes.port) as idle:
        idle.associate()
        busy.associate()
        busy.send(data_pdu(1, store_rq(), command=True), data_pdu(1, data[:100], command=False, last=False))
        eventually(lambda: processes.facts(0).get("open") == 2)
        process.send_signal(signal.SIGTERM)
        assert idle.read_pdu()[:1] == ABORT[:1]
        with pytest.raises(OSError, match="refused"):
            ScriptedPeer(processes.port)
        busy.send(data_pdu(1, data[100:], command=False))
        assert busy.read_status() == 0
        assert busy.read_pdu()[:1] == ABORT[:1]
    assert process.wait(10) == 0
    stored, closed = processes.entries()
    assert isinstance(stored, Stored)
    assert isinstance(closed, Closed)
    assert closed.how == "aborted"


def test_two_processes_share_port_and_limit(processes: Processes) -> None:
    processes.start(limit=4)
    processes.start(limit=4)
    peers = [ScriptedPeer(processes.port) for _ in range(4)]
    for number, peer in enumerate(peers):
        peer.associate()
        uid = f"1.2.{number}"
        assert peer.store(store_rq(sop_instance=uid), data_set(SOPInstanceUID=uid)) == 0
    for _ in range(8):  # whichever process it meets
        with ScriptedPeer(processes.port) as more:
            more.send(associate_rq())
            assert more.read_pdu()[7:10] == bytes((2, 3, 2))
    for peer in peers:
        peer.release()
        peer.socket.close()
    assert len({entry.sop_instance for entry in processes.entries() if isinstance(entry, Stored)}) == 4


def test_a_killed_process_gives_its_slots_back_and_keeps_what_it_acknowledged(processes: Processes) -> None:
    process = processes.start(limit=1)
    with ScriptedPeer(processes.port) as peer:
        peer.associate()
        assert peer.store(store_rq(), data_set()) == 0
        process.kill()
        process.wait()
        assert peer.read_pdu() == b""
    processes.start(limit=1)
    with ScriptedPeer(processes.port) as peer:
        peer.associate()
        peer.release()
    [stored] = [entry for entry in processes.entries() if isinstance(entry, Stored)]
    assert (processes.folder / "spool" / stored.path).stat().st_size == stored.size


def test_a_heartbeat_tells_counts_and_nothing_of_a_patient(processes: Processes) -> None:
    processes.start()
    with ScriptedPeer(processes.port) as peer:
        peer.associate()
        planted = data_set(PatientName="PLANTED^NAME", PatientID="PLANTED-ID", AccessionNumber="PLANTED-A")
        assert peer.store(store_rq(), planted) == 0
        assert peer.store(store_rq(sop_instance="1.2.777"), planted) == 0xA900
        with ScriptedPeer(processes.port) as stranger:
            stranger.send(associate_rq(calling=b"STRANGER"))
            assert stranger.read_pdu()[0] == 3
        eventually(lambda: processes.facts(0).get("rejected_calling_ae_title") == 1)
        facts = processes.facts(0)
        [told] = json.loads(str(facts["open_associations"]))
        assert told["instances"] == facts["instances"] == facts["status_0000"] == facts["status_A900"] == 1
        assert told["bytes"] > 2 * len(planted)
        assert facts["open"] == facts["associations"] == 1
        text = "".join(path.read_text() for path in (processes.folder / "heartbeats").iterdir())
        text += "".join(path.read_text() for path in (processes.folder / "spool" / "journals").iterdir())
        assert "PLANTED" not in text
        peer.release()


def test_nothing_is_left_open(processes: Processes) -> None:
    """Neither descriptors nor threads, after many associations of every end."""
    process = processes.start()

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{process.pid}/fd"))  # noqa: PTH208

    before = descriptors()
    for number in range(60):
        peer = ScriptedPeer(processes.port)
        peer.associate()
        assert peer.store(store_rq(), data_set()) == 0
        if number % 3 == 0:
            peer.release()
        elif number % 3 == 1:
            peer.send(ABORT)
        peer.reset()
    eventually(lambda: processes.facts(0).get("open") == 0)
    eventually(lambda: descriptors() <= before + 1)
    eventually(lambda: len(os.listdir(f"/proc/{process.pid}/task")) <= 3)  # noqa: PTH208
