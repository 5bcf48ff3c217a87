"""No patient's attribute is told anywhere: planted identifiers come in by every door, and nothing repeats one.

Doors are in `planted`, ways out in `told`: every file of the platform but instances, operators' data and the database's
own, all tables, what the gateway answers and commands print, all that Prefect was told, processes. Every part of a
planted value has the mark, so that a family name alone is found, too.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from dicom_peers import ROOT
from platform_fixture import free_port
from services.dicom.adapter import told
from services.dicom.adapter.adapter_world import SETTLED_S, AdapterWorld, answering, registering
from services.dicom.adapter.planted import (
    BORN,
    CT,
    MARK,
    RULED,
    STUDY_DATE,
    anything_goes,  # noqa: F401
    ask_for_a_patient,
    ask_the_gateway,
    gossip,
    planted,
    refusing_with_a_comment,
    send_by_every_door,
    tell_of_steps,
)
from services.dicom.export import peers
from tiny.pipelines import scripted
from waiting import eventually

from clara_flow.records.dicom_models import DeliveryState, DestinationKind, GroupState
from clara_flow.records.state_machine import JobState

NOWHERE = (MARK, BORN.encode(), b"1903-06-09")
TABLES_ALONE = (RULED.lower().encode(), STUDY_DATE.encode(), ROOT.encode())  # UIDs are people's, too
STRICT = ("/logs/", "Prefect", "GET /metrics", "GET /health", "process ")


def is_over(adapter: AdapterWorld, transaction_id: str) -> bool:
    answer = adapter.gateway.get(f"/api/inference/status/{transaction_id}").json()
    return bool(answer["dicom"]["state"] == "Completed")


def leaks(where: str, text: bytes, wanted: bytes) -> list[str]:
    lower = text.lower()
    if (at := lower.find(wanted)) < 0:
        return []
    return [f"{where} ({lower.count(wanted)} times): ...{text[max(0, at - 150) : at + 60]!r}"]


def delivered(adapter: AdapterWorld, destination: str, state: DeliveryState) -> None:
    eventually(lambda: [one.state for one in adapter.deliveries(destination)] == [state] * 3, within_s=SETTLED_S)


def refusing_to_commit(event: object) -> tuple[object, None]:
    return refusing_with_a_comment(event), None


@pytest.mark.timeout(900)  # a platform starts, and does a day's work
@pytest.mark.usefixtures("anything_goes")
def test_no_planted_identifier_is_told(adapter: AdapterWorld, tmp_path: Path) -> None:
    with ExitStack() as stack:
        pacs, strict = (stack.enter_context(peers.scp(classes=[CT])) for _ in range(2))
        refusing = stack.enter_context(peers.scp(refusing_with_a_comment, classes=[CT]))
        doubting = stack.enter_context(peers.scp(classes=[CT], commitment=refusing_to_commit))
        gossiping = stack.enter_context(gossip())
        processes = stack.enter_context(told.watched_processes(adapter))
        good = [adapter.destination(pacs.port), adapter.destination(strict.port, deidentify="basic")]
        bad, away = adapter.destination(refusing.port), adapter.destination(free_port())
        web = adapter.destination(gossiping, kind=DestinationKind.STOW, url=f"http://127.0.0.1:{gossiping}/dicom-web")
        unsure = adapter.destination(doubting.port, storage_commitment=True)
        pipeline = adapter.pipeline(answering(), registering("answer", *good, bad, away, web, unsure))
        aetitles = send_by_every_door(adapter, pipeline, tmp_path)
        reader = scripted("reader", container={"image": "clara/dicom-reader"}, requests={"cpu": 1, "memory": 1024})
        failing = adapter.aetitle(adapter.pipeline(reader), adapter.pipeline(scripted("a", script="fail:3")))
        unknown = adapter.aetitle("/nowhere/zq.yaml")
        study = planted()
        tell_of_steps(adapter, failing, study)
        adapter.send(failing, study)
        adapter.send(unknown, planted())
        requests = ask_for_a_patient(adapter, tmp_path, gossiping)
        ask_the_gateway(adapter)

        for aetitle in aetitles:
            adapter.completed(aetitle, 1)
        eventually(lambda: [job.state for job in adapter.jobs(failing)] == [JobState.STOPPED] * 2, within_s=SETTLED_S)
        adapter.group_is(unknown, GroupState.FAILED)
        eventually(lambda: all(is_over(adapter, one) for one in requests), within_s=SETTLED_S)
        for name in good:
            delivered(adapter, name, DeliveryState.SUCCEEDED)
        for name in (bad, web):
            delivered(adapter, name, DeliveryState.FAILED)
        for name in (away, unsure):
            eventually(lambda name=name: any(one.message for one in adapter.deliveries(name)), within_s=SETTLED_S)
        assert len(pacs.received) == len(strict.received) == 6
        assert all(b"ZQX" in content for _, content in pacs.received)
        assert not [content for _, content in strict.received if MARK in content.lower()]

    found, read = [], 0
    for source in (
        told.files(adapter), told.rows(adapter.handle.database_url, "records"), told.answers(adapter),
        told.prefect(adapter), told.commands(adapter, str(study[0].StudyInstanceUID)), processes.told(),
    ):  # fmt: skip
        for where, text in source:
            read += len(text)
            wanted = list(NOWHERE)
            if any(one in where for one in STRICT):
                wanted += TABLES_ALONE
            found += [leak for one in wanted for leak in leaks(where, text, one)]
    assert len(processes.lines) > 10
    assert read > 100_000
    assert not found, "\n".join(found)
