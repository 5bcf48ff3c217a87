"""REST of the results service, called as Clara's adapter calls it, and as nobody should."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres_fixture import database_url  # noqa: F401

from clara_flow.deployments.trigger import House
from clara_flow.errors import InputError
from clara_flow.infra.images.catalog import Catalog
from clara_flow.records import deliveries
from clara_flow.records.database import connect
from clara_flow.records.dicom_models import DeliveryState
from clara_flow.services import problems
from clara_flow.services.results import wire
from clara_flow.services.results.routes import router
from clara_flow.settings import load_settings

REGISTRATION: dict[str, Any] = {
    "jobId": "0a6f8d2c-3a0b-4c55-9a28-b1e3d7a1f001",
    "pipelineId": "c5d6",
    "payloadId": "0a6f8d2c-3a0b-4c55-9a28-b1e3d7a1f002",
    "agent": "ClaraSCU",
    "parameters": '"PACS"',
    "uris": ["/operators/writer/a.dcm", "/operators/writer/b.dcm"],
}


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:  # noqa: F811
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text("TRUNCATE deliveries, delivery_items"))
    yield engine
    engine.dispose()


@pytest.fixture
def app(engine: sa.Engine, tmp_path: Path) -> FastAPI:
    app = FastAPI()
    house = House(settings=load_settings(data_dir=tmp_path), engine=engine, catalog=Catalog({}, {}))
    app.include_router(router(house))
    problems.install(app)
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://clara-resultsservice:8088") as client:
        yield client


async def register(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    answer = await client.post("/api/tasks", json=REGISTRATION | changes)
    assert answer.status_code == 201, answer.text
    task: dict[str, Any] = answer.json()
    return task


def is_problem(answer: httpx.Response, status: int) -> bool:
    """An answer of RFC 7807."""
    content = answer.json()
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert content["status"] == status
    assert content["title"]
    assert content["detail"]
    return True


async def raw(app: FastAPI, request: bytes) -> tuple[int, bytes]:
    """What the application answers to the very bytes of a request."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    method, target, _ = first.split(b" ")
    path, _, query = target.partition(b"?")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method.decode(), "scheme": "http",
        "path": path.decode(), "raw_path": path, "query_string": query, "headers": headers, "root_path": "",
        "client": ("10.0.0.1", 40_000), "server": ("clara-resultsservice", 8088),
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


HOST = b"Host: clara-resultsservice:8088\r\n"


async def test_what_the_clara_adapter_sends_byte_by_byte(
    app: FastAPI, client: httpx.AsyncClient, engine: sa.Engine
) -> None:
    await register(client)
    poll = b"GET /api/tasks/ClaraSCU/pending?size=10 HTTP/1.1\r\n" + HOST + b"Accept: application/json\r\n\r\n"
    status, body = await raw(app, poll)
    (task,) = json.loads(body)
    assert status == 200
    identifier = task.pop("taskId")
    assert str(uuid.UUID(identifier)) == identifier
    for ours in ("created", "updated", "destination", "message"):
        del task[ours]
    assert task == {
        "jobId": "0a6f8d2c-3a0b-4c55-9a28-b1e3d7a1f001",
        "pipelineId": "c5d6",
        "payloadId": "0a6f8d2c-3a0b-4c55-9a28-b1e3d7a1f002",
        "parameters": '"PACS"',
        "state": "InProgress",
        "agent": "ClaraSCU",
        "retries": 0,
        "uris": ["operators/writer/a.dcm", "operators/writer/b.dcm"],
    }
    assert await raw(app, poll) == (200, b"[]")

    failure = b"PUT /api/tasks/failure/%s HTTP/1.1\r\n" % identifier.encode() + HOST
    failure += b"Content-Type: application/json; charset=utf-8\r\nContent-Length: 19\r\n\r\n"
    for _ in range(2):  # its answer was lost
        status, body = await raw(app, failure + b'{"RetryLater":true}')
        assert (status, json.loads(body)["retries"], json.loads(body)["state"]) == (200, 1, "Pending")

    assert json.loads((await raw(app, poll))[1])[0]["retries"] == 1
    success = b"PUT /api/tasks/success/%s HTTP/1.1\r\n" % identifier.encode() + HOST + b"Content-Length: 0\r\n\r\n"
    for _ in range(2):
        assert (await raw(app, success))[0] == 200
    assert (await raw(app, failure.replace(b"19", b"20") + b'{"RetryLater":false}'))[0] == 409
    (stored,) = deliveries.list_deliveries(engine)
    assert (stored.state, stored.retries) == (DeliveryState.SUCCEEDED, 1)


@pytest.mark.parametrize(
    ("body", "state", "retries"),
    [
        ('{"RetryLater": true}', "Pending", 1),
        ('{"RetryLater": false}', "Failed", 0),
        ('{"retrylater": true}', "Pending", 1),
        ('{"RETRYLATER":false, "other": [1]}', "Failed", 0),
        ("true", "Pending", 1),
        (" false\n", "Failed", 0),
        ("\ufefftrue", "Pending", 1),
    ],
)
@pytest.mark.parametrize("spelling", [str, lambda text: uuid.UUID(text).hex, str.upper])
async def test_a_failure_is_understood(
    client: httpx.AsyncClient, body: str, state: str, retries: int, spelling: Any
) -> None:
    task = await register(client)
    await client.get("/api/tasks/clarascu/pending")
    answer = await client.put(f"/api/tasks/failure/{spelling(task['taskId'])}", content=body.encode())
    assert answer.status_code == 200
    assert (answer.json()["state"], answer.json()["retries"]) == (state, retries)


async def test_tries_and_pauses_of_other_agents_may_be_limited(engine: sa.Engine, tmp_path: Path) -> None:
    own = load_settings(data_dir=tmp_path, results_maximum_retries=1, results_retry_delay_s=3600)
    limited = FastAPI()
    limited.include_router(router(House(settings=own, engine=engine, catalog=Catalog({}, {}))))
    transport = httpx.ASGITransport(app=limited)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        task = await register(client)
        for state in ("Pending", "Failed"):
            assert len((await client.get("/api/tasks/ClaraSCU/pending")).json()) == 1
            answer = await client.put(f"/api/tasks/failure/{task['taskId']}", content=b'{"RetryLater": true}')
            assert answer.json()["state"] == state
            assert (await client.get("/api/tasks/ClaraSCU/pending")).json() == []
            deliveries.retry(engine, uuid.UUID(task["taskId"]))


@pytest.mark.parametrize(
    "body", ["", "{}", "1", "null", '"true"', "[true]", '{"RetryLater": 1}', '{"RetryLater": null}', "{", "NaN", "\xff"]
)
async def test_a_failure_that_says_nothing_changes_nothing(client: httpx.AsyncClient, body: str) -> None:
    task = await register(client)
    await client.get("/api/tasks/ClaraSCU/pending")
    answer = await client.put(f"/api/tasks/failure/{task['taskId']}", content=body.encode("latin-1"))
    assert is_problem(answer, 400)
    assert (await client.get(f"/api/tasks/{task['taskId']}")).json()["state"] == "InProgress"


REPORTS = {
    "success": ("success", b""),
    "later": ("failure", b'{"RetryLater": true}'),
    "failure": ("failure", b'{"RetryLater": false}'),
}


@pytest.mark.parametrize("second", REPORTS)
@pytest.mark.parametrize("first", ["success", "failure"])
async def test_the_same_report_again_is_fine_and_another_is_not(
    client: httpx.AsyncClient, first: str, second: str
) -> None:
    task = await register(client)  # never handed out: who answers after a lease is believed
    answers = []
    for report in (first, second):
        path, body = REPORTS[report]
        answers.append(await client.put(f"/api/tasks/{path}/{task['taskId']}", content=body))
    assert answers[0].status_code == 200
    assert answers[1].status_code == 200 if first == second else is_problem(answers[1], 409)


@pytest.mark.parametrize("size", ["0", "1001", "-1", "x", "", "1.5", "1e3", "99999999999999999999", "\u0661"])
@pytest.mark.parametrize("path", ["/api/tasks/ClaraSCU/pending", "/api/tasks"])
async def test_sizes_are_checked(client: httpx.AsyncClient, path: str, size: str) -> None:
    assert is_problem(await client.get(path, params={"size": size}), 400)


async def test_sizes_are_obeyed(client: httpx.AsyncClient) -> None:
    for number in range(15):
        await register(client, jobId=f"j{number}")
    tasks = (await client.get("/api/tasks/ClaraSCU/pending")).json()
    assert [task["jobId"] for task in tasks] == [f"j{number}" for number in range(10)]
    assert [task["jobId"] for task in (await client.get("/api/tasks/ClaraSCU/pending?size=1")).json()] == ["j10"]
    assert len((await client.get("/api/tasks/ClaraSCU/pending?size=1000")).json()) == 4
    assert len((await client.get("/api/tasks?size=12")).json()) == 12


@pytest.mark.parametrize("agent", ["1a", "a-", "-", "a_b", "a%20b", "a%00", "%C3%A4"])
async def test_names_of_agents_are_checked(client: httpx.AsyncClient, agent: str) -> None:
    assert is_problem(await client.get(f"/api/tasks/{agent}/pending"), 400)
    assert is_problem(await client.get(f"/api/tasks?agent={agent}"), 400)


async def test_unknown_tasks_and_bad_ids(client: httpx.AsyncClient) -> None:
    calls = [("GET", ""), ("PUT", "success/"), ("PUT", "failure/")]
    for method, path in calls:
        unknown = await client.request(method, f"/api/tasks/{path}{uuid.uuid4()}", content=b"true")
        assert is_problem(unknown, 404)
        for bad in ("x", "0a6f8d2c", "{" + str(uuid.uuid4()) + "}", f"urn:uuid:{uuid.uuid4()}", "0" * 33):
            assert is_problem(await client.request(method, f"/api/tasks/{path}{bad}", content=b"true"), 400)


async def test_tasks_are_filtered(client: httpx.AsyncClient) -> None:
    first = await register(client, agent="renderserver")
    second = await register(client, jobId="another")
    await client.put(f"/api/tasks/success/{second['taskId']}")

    async def found(**query: str) -> list[str]:
        answer = await client.get("/api/tasks", params=query)
        assert answer.status_code == 200
        return [task["taskId"] for task in answer.json()]

    one, two = first["taskId"], second["taskId"]
    assert await found() == [two, one]
    assert await found(agent="RENDERSERVER") == [one]
    assert await found(state="succeeded") == [two]
    assert await found(state="Pending", jobId=uuid.UUID(REGISTRATION["jobId"]).hex) == [one]
    assert await found(jobId="another", agent="renderserver") == []
    assert is_problem(await client.get("/api/tasks?state=Done"), 400)


async def test_several_destinations_become_several_tasks(client: httpx.AsyncClient) -> None:
    answer = await client.post("/api/tasks", json=REGISTRATION | {"parameters": ["PACS", "ARCHIVE"]})
    assert answer.status_code == 201
    assert [task["parameters"] for task in answer.json()] == ['"PACS"', '"ARCHIVE"']
    assert (await client.get(answer.headers["location"])).json()["destination"] == "PACS"


async def test_a_registration_under_a_key_is_made_once(client: httpx.AsyncClient) -> None:
    async def post(key: str, **changes: Any) -> httpx.Response:
        return await client.post("/api/tasks", json=REGISTRATION | changes, headers={"Idempotency-Key": key})

    first, again, other = await post("a"), await post("a"), await post("b")
    elsewhere = await post("a", jobId="j2")
    ids = [answer.json()["taskId"] for answer in (first, again, other, elsewhere)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    await client.get("/api/tasks/ClaraSCU/pending")
    assert is_problem(await post("a", uris=["input/x"]), 409)
    assert is_problem(await post(" "), 400)


@pytest.mark.parametrize(
    "changes",
    [
        {"jobId": ""}, {"jobId": None}, {"jobId": 7}, {"payloadId": ""}, {"agent": ""}, {"agent": "a_b"}, {"uris": []},
        {"uris": "a"}, {"uris": [1]}, {"uris": ["../a"]}, {"uris": None}, {"parameters": "\0"}, {"jobId": "\ud800"},
    ],
)  # fmt: skip
async def test_what_cannot_be_delivered_is_not_registered(client: httpx.AsyncClient, changes: dict[str, Any]) -> None:
    answer = await client.post("/api/tasks", content=json.dumps(REGISTRATION | changes).encode())
    assert is_problem(answer, 400)
    assert (await client.get("/api/tasks")).json() == []


async def test_a_deep_body_is_refused(client: httpx.AsyncClient) -> None:
    assert is_problem(await client.post("/api/tasks", content=b"[" * 1_000_000), 400)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_whatever_is_sent_is_understood_or_refused(body: bytes | str) -> None:
    content = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
    for parse in (wire.parse_failure, wire.parse_registration):
        try:
            parse(content)  # type: ignore[operator]
        except InputError:
            continue
