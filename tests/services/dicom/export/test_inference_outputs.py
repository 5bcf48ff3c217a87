"""Results of inference requests: a delivery for each DICOMweb server of `outputResources`, with the request's login."""

from __future__ import annotations

import base64
import logging
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from job_rows_fixture import JobMaker
from services.dicom.export.export_world import World
from services.dicom.export.peers import free_port
from services.dicom.export.stow_peer import stored, stow_peer

from clara_flow.records import deliveries, inference
from clara_flow.records.dicom_models import Delivery, DeliveryState, InferenceRequest, InferenceStatus
from clara_flow.records.inference import Output
from clara_flow.services.dicom.inference_request import parse
from clara_flow.services.results.wire import task_json

SECRET = base64.b64encode(b"clara:s3cret").decode()
AGENTS = ("ClaraSCU", "DICOMweb")


@pytest.fixture(autouse=True)
def no_requests(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE inference_requests"))


def server(url: str, kind: str = "Basic", secret: str = SECRET, interface: str = "DICOMweb") -> dict[str, Any]:
    """A member of `outputResources`."""
    return {"interface": interface, "connectionDetails": {"uri": url, "authType": kind, "authID": secret}}


def request(world: World, *outputs: dict[str, Any], transaction: str = "t-1") -> InferenceRequest:
    """A request as the API takes it."""
    body = {
        "transactionID": transaction,
        "inputMetadata": {"inputs": [{"type": "DICOM_UID", "studies": [{"StudyInstanceUID": "1.2"}]}]},
        "inputResources": [
            {"interface": "Algorithm", "connectionDetails": {"name": "n", "id": "n"}},
            {"interface": "DICOMweb", "connectionDetails": {"uri": "http://nowhere"}},
        ],
        "outputResources": list(outputs),
    }
    order = parse(body)
    return inference.submit(world.engine, transaction, body, order.destinations)


def register(
    world: World,
    row: InferenceRequest,
    files: Sequence[Path],
    *,
    agent: str = "DICOMweb",
    parameters: str = "",
    **more: Any,
) -> list[Delivery]:
    """What a job of that request registers."""
    payload_id, uris = world.payload(*files)
    facts = {"job_id": row.job_id, "payload_id": payload_id, "delivery_id": row.job_id, "uris": uris, **more}
    return deliveries.register(
        world.engine, agent=agent, parameters=parameters, own_agents=AGENTS, stow_agent="DICOMweb", **facts
    )


def test_each_server_gets_all_files_with_its_own_login(world: World) -> None:
    files = world.images(3)
    with stow_peer() as one, stow_peer() as other:
        row = request(world, server(one.url), server(other.url, "Bearer", "t.o.k"), server(one.url, "Bearer", "again"))
        tasks = register(world, row, files)
        with world.exporting():
            assert [world.ended(task).state for task in tasks] == [DeliveryState.SUCCEEDED] * 2
    assert {len(instances) for peer in (one, other) for instances in peer.requests} == {3}
    assert [peer.headers[0]["authorization"] for peer in (one, other)] == [f"Basic {SECRET}", "Bearer t.o.k"]


def test_registered_again_it_is_the_same_deliveries(world: World) -> None:
    row = request(world, server("http://127.0.0.1:1/a"), server("http://127.0.0.1:1/b"))
    payload_id, uris = world.payload(*world.images(1))
    first, again = (register(world, row, (), payload_id=payload_id, uris=uris) for _ in range(2))
    assert {task.id for task in first} == {task.id for task in again}
    assert len(deliveries.list_deliveries(world.engine)) == 2


def test_destinations_that_the_pipeline_names_get_them_too(world: World) -> None:
    row = request(world, server("http://pacs.example/a"))
    tasks = register(world, row, world.images(1), parameters='["MINE"]')
    assert sorted(task.destination.split("/")[0] for task in tasks) == ["MINE", "output"]
    assert tasks[-1].destination.startswith("output/pacs.example/")


@pytest.mark.parametrize("agent", ["ClaraSCU", "Another"])
def test_what_is_for_another_agent_stays_there(world: World, agent: str) -> None:
    row = request(world, server("http://pacs.example/a"))
    (task,) = register(world, row, world.images(1), agent=agent, parameters='"PACS"')
    assert task.destination in {"PACS", ""}


def test_a_server_that_is_away_keeps_the_other_from_nothing(world: World) -> None:
    with stow_peer() as there:
        row = request(world, server(f"http://127.0.0.1:{free_port()}/dicom-web"), server(there.url))
        tasks = {task.destination: task for task in register(world, row, world.images(1))}
        away, here = (tasks[Output(one["uri"]).destination] for one in row.outputs)
        with world.exporting():
            assert world.ended(here).state is DeliveryState.SUCCEEDED
            assert world.ended(away).state is DeliveryState.FAILED
    assert "cannot be reached" in world.look(away).message


def test_a_wrong_login_is_its_requests_own_trouble(world: World) -> None:
    """Many of them do not open the breaker of a server that others use."""
    with stow_peer(login=f"Basic {SECRET}") as peer:
        wrong = [request(world, server(peer.url, "Basic", "d3Jvbmc="), transaction=f"w-{n}") for n in range(4)]
        bad = [task for row in wrong for task in register(world, row, world.images(1))]
        with world.exporting():
            ends = [world.ended(task) for task in bad]
            right = register(world, request(world, server(peer.url), transaction="r"), world.images(1))
            assert world.ended(right[0]).state is DeliveryState.SUCCEEDED
    assert {one.state for one in ends} == {DeliveryState.FAILED}
    assert "401" in ends[0].message


def test_a_job_that_goes_on_from_the_requests_job_delivers_to_its_servers(world: World, engine: sa.Engine) -> None:
    row, maker = request(world, server("http://pacs.example/a")), JobMaker(engine)
    first = maker.queued(job_id=row.job_id)
    again = maker.queued(resumes=maker.queued(resumes=first.id).id)
    (task,) = register(world, row, world.images(1), job_id=again.id)
    assert task.destination == Output("http://pacs.example/a").destination


@pytest.mark.parametrize("named", ["job, without dashes", "payload", "neither"])
def test_the_request_is_known_by_its_job_or_its_payload(world: World, named: str) -> None:
    row = request(world, server("http://pacs.example/a"))
    _, uris = world.payload(*world.images(1))
    job = row.job_id.hex if "job" in named else "somebody else's"
    payload = row.payload_id if named == "payload" else uuid.uuid4()
    (task,) = register(world, row, (), job_id=job, payload_id=payload, uris=uris)
    assert task.destination == ("" if named == "neither" else Output("http://pacs.example/a").destination)


def test_nobody_else_gets_the_login_by_the_name_of_a_server(world: World) -> None:
    with stow_peer() as peer:
        row = request(world, server(peer.url))
        name = Output(peer.url).destination
        other = deliveries.register(
            world.engine, job_id=uuid.uuid4(), payload_id=world.payload(*world.images(1))[0], agent="DICOMweb",
            parameters=f'"{name}"', uris=["operators/writer/0.dcm"], own_agents=AGENTS,
        )  # fmt: skip
        (mine,) = register(world, row, world.images(1))
        with world.exporting():
            assert world.ended(mine).state is DeliveryState.SUCCEEDED
            assert world.ended(other[0]).state is DeliveryState.FAILED
    assert [headers["authorization"] for headers in peer.headers] == [f"Basic {SECRET}"]


def test_no_secret_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with stow_peer(lambda uids, number: (503, {}) if number == 0 else (200, stored(uids))) as peer:
        row = request(world, server(peer.url))
        (task,) = register(world, row, world.images(1))
        with world.exporting():
            ended = world.ended(task)
        beats = (world.settings.data_dir / "dicom" / "heartbeats").glob("*.json")
        told = "".join(path.read_text() for path in beats)
    assert ended.state is DeliveryState.SUCCEEDED
    assert SECRET not in caplog.text + told + str(task_json(ended)) + str(row.body)
    assert SECRET in str(inference.find(world.engine, "t-1").outputs)


def test_a_request_that_failed_forgets_its_servers(world: World) -> None:
    request(world, server("http://pacs.example/a"))
    inference.complete(world.engine, "t-1", InferenceStatus.FAIL)
    assert inference.find(world.engine, "t-1").outputs == []


def test_servers_of_fhir_get_nothing(world: World) -> None:
    row = request(world, server("http://fhir.example", interface="FHIR"))
    assert row.outputs == []
    assert [task.destination for task in register(world, row, world.images(1))] == [""]
