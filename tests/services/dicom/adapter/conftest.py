"""One platform with listeners, exporter and gateway for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_fixture import free_port
from services.dicom.adapter.adapter_world import AdapterWorld
from tiny.pipelines import TINY

from clara_flow.services.platform import ensure_platform
from clara_flow.settings import Settings, load_settings


@pytest.fixture(scope="session")
def adapter_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Free ports, short pauses."""
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "inbox").mkdir()
    return load_settings(
        data_dir=folder / "data",
        prefect_port=free_port(),
        dicom_port=free_port(),
        gateway_port=free_port(),
        dicom_inbox=folder / "inbox",
        dicom_listeners=2,
        dicom_watermark_percent=100,
        dicom_reserve_mib=0,
        dicom_submit_retries=1,
        dicom_submit_retry_delay_s=0.2,
        dicom_export_retries=1,
        dicom_export_retry_delay_s=0.2,
        dicom_export_timeout_s=5,
        storage_limit_percent=100,
        catalogs=(TINY,),
        node_jobs=4,
        warm_runners=2,
        stop_grace_s=1,
    )


@pytest.fixture(scope="session")
def adapter(adapter_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterWorld]:
    """The platform, started when first asked for."""
    handle = ensure_platform(adapter_settings)
    world = AdapterWorld(handle, Path(tmp_path_factory.mktemp("pipelines")))
    yield world
    world.close()
    handle.stop()
