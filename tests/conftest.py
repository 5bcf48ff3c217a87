"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import docker_engine as engines
import hypothesis
import pytest
from brain_model_fixture import brain_model  # noqa: F401
from house_fixture import house, input_folder  # noqa: F401
from orthanc_fixture import orthanc, orthanc_server  # noqa: F401
from platform_fixture import platform, platform_settings  # noqa: F401

from clara_flow.infra.images.build import ImageBuilder
from clara_flow.infra.images.catalog import bundled

# A busy machine is slow: that is no fault of what is tested.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

# Platforms of tests neither receive DICOM nor serve REST, unless a test wants them to: tests/services/dicom does.
os.environ["CLARA_FLOW_DICOM_PORT"] = os.environ["CLARA_FLOW_GATEWAY_PORT"] = "0"


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
def image_builder(docker_engine: str, base_image: str) -> ImageBuilder:
    """Builds on that base, through this machine's network and certificates."""
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    return ImageBuilder(
        base_url=docker_engine, base_image=base_image, ca_bundle=Path(bundle) if bundle else None, network="host"
    )


@pytest.fixture(scope="session")
def operator_images(image_builder: ImageBuilder) -> dict[str, str]:
    """The bundled operators' images, built once: name -> reference."""
    return {name: image_builder.build(operator) for name, operator in bundled().operators.items()}
