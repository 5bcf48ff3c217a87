"""REST of the results service, with Clara's paths and words, for agents that speak HTTP; our own take their tasks from
the records.

    GET  /api/tasks/{agent}/pending?size=N      take at most N tasks, the oldest first
    PUT  /api/tasks/success/{task}              delivered
    PUT  /api/tasks/failure/{task}              {"RetryLater": true|false}, or the boolean alone
    POST /api/tasks                             register results (ours)
    GET  /api/tasks, /api/tasks/{task}          look (ours)
"""

from __future__ import annotations

import json
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from clara_flow.deployments.trigger import House
from clara_flow.errors import InputError
from clara_flow.records import deliveries
from clara_flow.services.results.wire import (
    Registration,
    parse_failure,
    parse_id,
    parse_registration,
    parse_size,
    parse_state,
    task_json,
)

KEY_HEADER = "Idempotency-Key"
KEYS = uuid.UUID("5a9bd1f2-6c3a-5b7e-9d52-1f0c6a4e8b31")  # namespace of tasks that were registered under a key


async def body_of(request: Request) -> bytes:
    """What was sent, whatever it says it is."""
    return await request.body()


Body = Annotated[bytes, Depends(body_of)]


def router(house: House) -> APIRouter:
    """The paths, without a prefix. Errors are raised: `services.problems` answers them."""
    routes, engine, settings = APIRouter(tags=["results"]), house.engine, house.settings
    own_agents = (settings.dicom_scu_ae_title, settings.dicom_stow_agent)

    @routes.get("/api/tasks/{agent}/pending")
    def take(agent: str, request: Request) -> JSONResponse:
        size = parse_size(request.query_params)
        deliveries.checked_agent(agent, own_agents)
        tasks = deliveries.take(engine, agent, size, settings.results_lease_s)
        return JSONResponse([task_json(task) for task in tasks])

    @routes.put("/api/tasks/success/{task}")
    def succeed(task: str) -> JSONResponse:
        return JSONResponse(task_json(deliveries.succeed(engine, parse_id(task))))

    @routes.put("/api/tasks/failure/{task}")
    def fail(task: str, body: Body) -> JSONResponse:
        retry_later, message = parse_failure(body)
        row = deliveries.fail(
            engine,
            parse_id(task),
            retry_later,
            message,
            delay_s=settings.results_retry_delay_s,
            maximum_retries=settings.results_maximum_retries,
        )
        return JSONResponse(task_json(row))

    @routes.post("/api/tasks")
    def register(request: Request, body: Body) -> JSONResponse:
        wanted = parse_registration(body)
        key = _key(request.headers.get(KEY_HEADER), wanted)
        tasks = deliveries.register(
            engine,
            job_id=wanted.job_id,
            pipeline_id=wanted.pipeline_id,
            payload_id=wanted.payload_id,
            agent=wanted.agent,
            parameters=wanted.parameters,
            uris=wanted.uris,
            delivery_id=key,
            own_agents=own_agents,
            stow_agent=settings.dicom_stow_agent,
        )
        content: Any = [task_json(task) for task in tasks]
        return JSONResponse(
            content if len(tasks) > 1 else content[0], 201, headers={"Location": f"/api/tasks/{tasks[0].id}"}
        )

    @routes.get("/api/tasks")
    def look(request: Request) -> JSONResponse:
        query = request.query_params
        agent = query.get("agent")
        tasks = deliveries.list_deliveries(
            engine,
            agent=None if agent is None else deliveries.checked_agent(agent, own_agents),
            state=parse_state(query.get("state")),
            job_id=query.get("jobId"),
            limit=parse_size(query),
        )
        return JSONResponse([task_json(task) for task in tasks])

    @routes.get("/api/tasks/{task}")
    def look_at(task: str) -> JSONResponse:
        return JSONResponse(task_json(deliveries.find_delivery(engine, parse_id(task))))

    return routes


def _key(header: str | None, wanted: Registration) -> uuid.UUID | None:
    """The idempotency key of a registration: one of another job or agent is another one."""
    if header is None:
        return None
    if not header.strip():
        raise InputError(f"the header {KEY_HEADER} is empty")
    text = json.dumps([header, wanted.job_id, wanted.agent.casefold()])
    return uuid.uuid5(KEYS, text)
