"""The gateway: one HTTP application for configuration, results, DICOMweb, inference requests, health and metrics.

python -m clara_flow.services.gateway
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from clara_flow import __version__
from clara_flow.deployments.own_log import log_to_stderr
from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError
from clara_flow.infra.images.catalog import installed
from clara_flow.infra.postgres import records_url
from clara_flow.records.database import connect
from clara_flow.services import health, metrics, problems
from clara_flow.services.access import BearerToken
from clara_flow.services.body_limit import BodyLimit
from clara_flow.services.dicom import config_routes, inference_routes, web_routes, web_store
from clara_flow.services.results import routes as results_routes
from clara_flow.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import APIRouter

log = logging.getLogger(__name__)

STOP_GRACE_S = 8  # less than the supervisor's patience
KEEP_ALIVE_S = 30
DATABASE_CONNECTIONS = 10


def routers_of(house: House) -> Sequence[APIRouter]:
    """Everything that the gateway answers; paths that stand for more come after those that stand for one."""
    return (
        health.router(house),
        metrics.router(house),
        config_routes.router(house),
        results_routes.router(house),
        inference_routes.router(house),
        web_store.router(house),
        web_routes.router(house),
    )


def create_app(house: House) -> FastAPI:
    """The application. Every error is a problem answer; pages that load scripts from elsewhere are not served."""
    app = FastAPI(title="clara-flow", version=__version__, docs_url=None, redoc_url=None)
    for router in routers_of(house):
        app.include_router(router)
    problems.install(app)
    app.add_middleware(BodyLimit)
    if house.settings.gateway_token is not None:
        trusted = house.settings.results_trusted_networks
        app.add_middleware(BearerToken, token=house.settings.gateway_token, trusted=trusted)
    return app


def main() -> int:
    """Serve until SIGTERM; requests under way may end. Returns the exit status."""
    log_to_stderr()
    try:
        settings = load_settings()
        engine = connect(records_url(settings), pool_size=DATABASE_CONNECTIONS)
        house = House(settings=settings, engine=engine, catalog=installed(settings.catalogs))
        app = create_app(house)
    except ClaraFlowError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.gateway_port,
        access_log=False,  # UIDs stand in paths, names and numbers of patients in queries
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_GRACE_S,
        server_header=False,
    )
    try:
        uvicorn.Server(config).run()
    finally:
        engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
