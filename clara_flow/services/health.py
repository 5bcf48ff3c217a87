"""Health, told by progress and not by start flags: every loop's last beat, what waits and for how long, free space."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse

from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError
from clara_flow.records.database import statements
from clara_flow.services.dicom.block_nodes import unused_blocks
from clara_flow.services.dicom.heartbeats import LISTENER, SILENT_AFTER_S, Beat, associations, listeners, read_all
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.space import SpaceCheck
from clara_flow.services.dicom_service import ADAPTER
from clara_flow.services.dicom_traffic import Target, targets
from clara_flow.settings import Settings

# Clara's names of its services: the loop of ours that does its work, by the name of its beat.
SERVICES: Mapping[str, str] = {
    "SpaceReclaimer": "cleanup",
    "JobSubmission": "grouper",
    "DataRetrieval": "inference",
    "Scp": LISTENER,
    "ScuExport": "exporter",
    "DicomWebExport": "exporter",
}


class ServiceState(StrEnum):
    """Clara's words. Unknown: never heard of; Stopped: silent for SILENT_AFTER_S."""

    UNKNOWN = "Unknown"
    STOPPED = "Stopped"
    RUNNING = "Running"


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits: how much of it, and for how many seconds the oldest (0 when nothing does)."""

    name: str
    depth: int
    oldest_s: float


QUEUES = sa.text("""
SELECT 'open groups', count(*), max(extract(epoch FROM now() - opened)) FROM dicom_groups WHERE state = 'OPEN'
UNION ALL
SELECT 'complete groups', count(*), max(extract(epoch FROM now() - completed)) FROM dicom_groups
WHERE state = 'COMPLETE'
UNION ALL
SELECT 'deliveries', count(*), max(extract(epoch FROM now() - created)) FROM deliveries WHERE state = 'Pending'
UNION ALL
SELECT 'inference requests', count(*), max(extract(epoch FROM now() - created)) FROM inference_requests
WHERE state <> 'Completed'
UNION ALL
SELECT 'commitment reports', count(*), max(extract(epoch FROM now() - created)) FROM dicom_commitment_reports
WHERE not_before IS NOT NULL
""")


def beats(settings: Settings) -> list[Beat]:
    """The last beat of every loop."""
    return read_all(Places.of(settings).heartbeats)


def service_states(heard: Sequence[Beat]) -> dict[str, ServiceState]:
    """How Clara's six services are."""
    return {
        name: _listener_state(heard) if loop == LISTENER else _state(heard, loop) for name, loop in SERVICES.items()
    }


def _state(heard: Sequence[Beat], loop: str) -> ServiceState:
    beat = next((beat for beat in heard if beat.name == loop), None)
    if beat is None:
        return ServiceState.UNKNOWN
    return ServiceState.RUNNING if beat.age_s < SILENT_AFTER_S else ServiceState.STOPPED


def _listener_state(heard: Sequence[Beat]) -> ServiceState:
    """As many must go round as the adapter keeps running: one that hangs is told. Earlier ones may have been more."""
    known = listeners(heard)
    if not known:
        return ServiceState.UNKNOWN
    running = next((int(beat.facts.get("listeners", 1)) for beat in heard if beat.name == ADAPTER), 1)
    going = sum(beat.age_s < SILENT_AFTER_S for beat in known)
    return ServiceState.RUNNING if going >= max(1, running) else ServiceState.STOPPED


def is_healthy(heard: Sequence[Beat]) -> bool:
    """Whether every service runs."""
    return all(state is ServiceState.RUNNING for state in service_states(heard).values())


def open_associations(heard: Sequence[Beat]) -> list[dict[str, Any]]:
    """Each of them, as its listener tells: our id, seconds, instances and bytes so far."""
    found: list[dict[str, Any]] = []
    for beat in listeners(heard):
        if beat.age_s < SILENT_AFTER_S:
            with suppress(ValueError, TypeError):
                found += json.loads(beat.facts.get("open_associations", "[]"))
    return found


def queues(engine: sa.Engine) -> list[Queue]:
    """What waits. Raises ServiceError."""
    with statements(engine) as connection:
        return [Queue(name, depth, max(0.0, float(age or 0))) for name, depth, age in connection.execute(QUEUES)]


def waits_s(target: Target) -> float:
    """For how many seconds the oldest delivery to it waits; 0 when none does."""
    return max(0.0, (datetime.now(UTC) - target.oldest).total_seconds()) if target.oldest else 0.0


def space(settings: Settings) -> dict[str, int]:
    """Free bytes of the spool's disk, and how many of them must stay free."""
    check = SpaceCheck(settings.data_dir, settings.dicom_watermark_percent, settings.dicom_reserve_mib)
    return {"freeBytes": check.free_bytes, "reservedBytes": check.reserved_bytes}


def status(house: House) -> dict[str, Any]:
    """The body of `/health/status`: Clara's members, and what tells a dead loop from an idle one."""
    heard = beats(house.settings)
    try:
        waiting, database = [asdict(queue) for queue in queues(house.engine)], "Running"
        destinations = {target.name: _destination(target) for target in targets(house.engine, heard)}
    except ClaraFlowError:
        waiting, destinations, database = [], {}, "Stopped"
    return {
        "activeDimseConnections": associations(heard),
        "services": service_states(heard),
        "database": database,
        "heartbeats": {beat.name: _shown(beat) for beat in heard},
        "associations": open_associations(heard),
        "queues": {
            queue["name"]: {"depth": queue["depth"], "oldestSeconds": round(queue["oldest_s"], 1)} for queue in waiting
        },
        "destinations": destinations,
        "unusedBlocks": unused_blocks(heard),
        "space": space(house.settings),
    }


def _destination(target: Target) -> dict[str, Any]:
    return {
        "isKnown": target.is_known,
        "paused": target.paused,
        "breaker": target.breaker,
        "lastError": target.trouble or None,
        "depth": target.waiting,
        "underWay": target.under_way,
        "failed": target.failed,
        "oldestSeconds": round(waits_s(target), 1),
        "lastSuccess": target.last_success.isoformat() if target.last_success else None,
    }


def _shown(beat: Beat) -> dict[str, Any]:
    facts = {name: value for name, value in beat.facts.items() if name != "open_associations"}
    return {"ageSeconds": round(beat.age_s, 1), "pid": beat.pid, **facts}


def router(house: House) -> APIRouter:
    """`/health/status`, `/health/ready` and `/health/live`."""
    routes = APIRouter(prefix="/health", tags=["health"])

    @routes.get("/status")
    def get_status() -> JSONResponse:
        return JSONResponse(status(house))

    @routes.get("/live")
    @routes.get("/ready")
    def get_health() -> PlainTextResponse:
        if is_healthy(beats(house.settings)):
            return PlainTextResponse("Healthy")
        return PlainTextResponse("Unhealthy", 503)

    return routes
