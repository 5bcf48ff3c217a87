"""A gateway for tests: our application in a real server on a free loopback port, on a database of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI
from platform_fixture import free_port
from tiny.pipelines import tiny_catalog
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records.database import connect
from clara_flow.settings import load_settings

TABLES = (
    "dicom_aetitles, dicom_sources, dicom_destinations, dicom_journals, dicom_groups, dicom_instances, "
    "dicom_submissions, deliveries, delivery_items, inference_requests, leases, nodes, quotas, job_operators, jobs, "
    "pipelines, payloads"
)


@contextlib.contextmanager
def house_on(database_url: str, folder: Path, **settings: object) -> Iterator[House]:
    """A platform without processes: settings, empty tables, the tiny operators."""
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {TABLES} CASCADE"))
    made = load_settings(data_dir=folder / "data", gateway_port=free_port(), **settings)
    made.data_dir.mkdir(exist_ok=True)
    yield House(settings=made, engine=engine, catalog=tiny_catalog())
    engine.dispose()


@contextlib.contextmanager
def served(app: FastAPI, port: int) -> Iterator[str]:
    """The address of `app`, served by uvicorn until the end of the block."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        assert server.started
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def client(url: str, **options: object) -> httpx.Client:
    """A client of that address, past every proxy."""
    return httpx.Client(base_url=url, trust_env=False, timeout=30, **options)  # type: ignore[arg-type]
