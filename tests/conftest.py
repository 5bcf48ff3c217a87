"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import docker_engine as engines
import pytest


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[str]:
    """Base URL of a Docker engine, started for this session when none answers; skips where that is impossible."""
    with engines.engine() as base_url:
        yield base_url


@pytest.fixture(scope="session")
def base_image(docker_engine: str) -> str:
    """Reference of an image with Python 3.11, venv and pip."""
    return engines.ensure_base_image(docker_engine)


@pytest.fixture(scope="session")
def operator_images(docker_engine: str, base_image: str) -> dict[str, str]:
    """The bundled operators' images, built once: name -> reference."""
    from clara_flow.infra.images.build import ImageBuilder
    from clara_flow.infra.images.catalog import Catalog

    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    builder = ImageBuilder(
        base_url=docker_engine, base_image=base_image, ca_bundle=Path(bundle) if bundle else None, network="host"
    )
    return {operator.name: builder.build(operator) for operator in Catalog.load().operators.values()}
