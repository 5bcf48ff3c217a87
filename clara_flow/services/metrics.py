"""Prometheus metrics, made when they are asked for: from the loops' beats and from counts in the tables.

Labels are names of ours (services, loops, states, AE titles, destinations), never anything of a patient.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError
from clara_flow.records.database import statements
from clara_flow.services import health
from clara_flow.services.dicom.export.breaker import BreakerState
from clara_flow.services.dicom.heartbeats import associations
from clara_flow.services.dicom_traffic import targets

GROUPS = sa.text("SELECT aetitle, state, count(*), coalesce(sum(instances), 0) FROM dicom_groups GROUP BY 1, 2")
DELIVERIES = sa.text("SELECT agent, destination, state, count(*) FROM deliveries GROUP BY 1, 2, 3")
REQUESTS = sa.text("SELECT state, status, count(*) FROM inference_requests GROUP BY 1, 2")
STEPS = sa.text("SELECT status, count(*) FROM dicom_procedure_steps GROUP BY 1")
JOBS = sa.text("SELECT state, status, count(*) FROM jobs GROUP BY 1, 2")


class PlatformCollector(Collector):
    """Looks at the platform for each scrape; a database that is away is told by `clara_flow_database_up` 0."""

    def __init__(self, house: House) -> None:
        self.house = house

    def describe(self) -> list[Metric]:
        """Nothing ahead of time: the database may be away when the registry is made."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        yield from self._loops()
        try:
            families = [*self._queues(), *self._destinations(), *self._counts()]
            up = 1.0
        except ClaraFlowError:
            families, up = [], 0.0
        yield GaugeMetricFamily("clara_flow_database_up", "Whether the database answers", value=up)
        yield from families

    def _loops(self) -> Iterator[Metric]:
        heard = health.beats(self.house.settings)
        running = GaugeMetricFamily("clara_flow_service_running", "Whether a service is heard of", labels=["service"])
        for name, state in health.service_states(heard).items():
            running.add_metric([name], float(state is health.ServiceState.RUNNING))
        yield running
        age = GaugeMetricFamily("clara_flow_heartbeat_age_seconds", "Since a loop's last round", labels=["loop"])
        fact = GaugeMetricFamily("clara_flow_loop_fact", "What a loop says of itself", labels=["loop", "fact"])
        for beat in heard:
            age.add_metric([beat.name], beat.age_s)
            for name, value in beat.facts.items():
                if isinstance(value, int | float):
                    fact.add_metric([beat.name, name], float(value))
        yield age
        yield fact
        yield GaugeMetricFamily(
            "clara_flow_dimse_associations", "Inbound DICOM associations", value=associations(heard)
        )
        disk = GaugeMetricFamily("clara_flow_spool_bytes", "Room on the spool's disk", labels=["kind"])
        for kind, amount in health.space(self.house.settings).items():
            disk.add_metric([kind.removesuffix("Bytes")], amount)
        yield disk

    def _queues(self) -> Iterator[Metric]:
        depth = GaugeMetricFamily("clara_flow_queue_depth", "What waits", labels=["queue"])
        oldest = GaugeMetricFamily("clara_flow_queue_oldest_seconds", "For how long", labels=["queue"])
        for queue in health.queues(self.house.engine):
            depth.add_metric([queue.name], queue.depth)
            oldest.add_metric([queue.name], queue.oldest_s)
        yield depth
        yield oldest

    def _destinations(self) -> Iterator[Metric]:
        name = ["destination"]
        depth = GaugeMetricFamily("clara_flow_destination_queue_depth", "Deliveries that wait", labels=name)
        oldest = GaugeMetricFamily("clara_flow_destination_oldest_seconds", "For how long", labels=name)
        breaker = GaugeMetricFamily(
            "clara_flow_destination_breaker", "1 for the state of its circuit breaker", labels=[*name, "state"]
        )
        success = GaugeMetricFamily(
            "clara_flow_destination_last_success_timestamp_seconds", "When a delivery succeeded last", labels=name
        )
        for target in targets(self.house.engine, health.beats(self.house.settings)):
            depth.add_metric([target.name], target.waiting)
            oldest.add_metric([target.name], health.waits_s(target))
            for state in BreakerState:
                breaker.add_metric([target.name, state], float(target.breaker is state))
            if target.last_success is not None:
                success.add_metric([target.name], target.last_success.timestamp())
        yield from (depth, oldest, breaker, success)

    def _counts(self) -> Iterator[Metric]:
        groups = GaugeMetricFamily("clara_flow_groups", "Groups of instances", labels=["aetitle", "state"])
        instances = GaugeMetricFamily("clara_flow_instances", "Their instances", labels=["aetitle", "state"])
        deliveries = GaugeMetricFamily(
            "clara_flow_deliveries", "Delivery tasks", labels=["agent", "destination", "state"]
        )
        requests = GaugeMetricFamily("clara_flow_inference_requests", "Inference requests", labels=["state", "status"])
        steps = GaugeMetricFamily("clara_flow_procedure_steps", "What modalities told (MPPS)", labels=["status"])
        jobs = GaugeMetricFamily("clara_flow_jobs", "Jobs", labels=["state", "status"])
        with statements(self.house.engine) as connection:
            for aetitle, state, count, received in connection.execute(GROUPS):
                groups.add_metric([aetitle, state], count)
                instances.add_metric([aetitle, state], float(received))
            for family, query in ((deliveries, DELIVERIES), (requests, REQUESTS), (steps, STEPS), (jobs, JOBS)):
                for *labels, count in connection.execute(query):
                    family.add_metric([str(label) for label in labels], count)
        yield from (groups, instances, deliveries, requests, steps, jobs)


def router(house: House) -> APIRouter:
    """`/metrics`."""
    routes = APIRouter(tags=["metrics"])
    registry = CollectorRegistry()
    registry.register(PlatformCollector(house))

    @routes.get("/metrics")
    def get_metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes
