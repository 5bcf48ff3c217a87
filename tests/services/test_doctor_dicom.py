"""What the doctor says of the way in and out for DICOM."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from platform_fixture import clara_flow, free_port

from clara_flow.records.owner import process_start
from clara_flow.services import doctor, doctor_dicom
from clara_flow.services.findings import Finding, Level
from clara_flow.services.state_file import PlatformState, ServiceStatus, StateFile
from clara_flow.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that receive DICOM and serve REST, on a disk that may be as full as it is."""
    return load_settings(
        data_dir=tmp_path / "data",
        dicom_port=free_port(),
        gateway_port=free_port(),
        dicom_watermark_percent=100,
        dicom_reserve_mib=0,
    )


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program has."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def findings(settings: Settings, **changes: object) -> dict[str, Finding]:
    """Of both checks, by what they are of."""
    settings = settings.model_copy(update=changes)
    return {found.check: found for check in ("dicom", "gateway") for found in doctor.CHECKS[check](settings)}


def test_free_ports_and_room(settings: Settings) -> None:
    found = findings(settings)
    assert found[f"port {settings.dicom_port}"].text == "is free (dicom_port)"
    assert found[f"port {settings.gateway_port}"].text == "is free (gateway_port)"
    assert found["spool"].level is Level.OK
    assert not settings.data_dir.exists()


def test_what_is_switched_off_is_not_looked_at(settings: Settings) -> None:
    found = findings(settings, dicom_port=0, gateway_port=0)
    assert {check: (finding.level, finding.text) for check, finding in found.items()} == {
        "dicom": (Level.OK, "is switched off (dicom_port is 0)"),
        "gateway": (Level.OK, "is switched off (gateway_port is 0)"),
    }


@pytest.mark.parametrize("setting", ["dicom_port", "dicom_tls_port", "gateway_port"])
def test_a_port_that_another_has_is_a_problem(settings: Settings, taken: int, setting: str) -> None:
    found = findings(settings, **{setting: taken})[f"port {taken}"]
    assert found.level is Level.PROBLEM
    assert f"(pid {os.getpid()})" in found.text
    assert f"CLARA_FLOW_{setting.upper()}" in found.remedy


def test_a_port_that_only_root_may_take(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "clara_flow.services.ports.why_not_free", lambda host, port: f"port {port} on {host} cannot be used: denied"
    )
    found = findings(settings, dicom_port=104)["port 104"]
    assert found.level is Level.PROBLEM
    assert "net.ipv4.ip_unprivileged_port_start=104" in found.remedy


def test_ports_of_our_own_services_are_fine(settings: Settings, taken: int) -> None:
    file = StateFile(settings.data_dir)
    file.prepare()
    own = ServiceStatus(name="dicom", address=f"127.0.0.1:{taken}", state="running", pid=os.getpid())
    file.write(PlatformState(pid=os.getpid(), started="0", services=(own,)))
    found = findings(settings, dicom_port=taken)[f"port {taken}"]
    # Nobody supervises it: the file alone proves nothing.
    assert found.level is Level.PROBLEM
    with file.supervising():
        file.write(PlatformState(pid=os.getpid(), started=process_start(os.getpid()), services=(own,)))
        found = findings(settings, dicom_port=taken)[f"port {taken}"]
    assert (found.level, found.text) == (Level.OK, "is that of the DICOM adapter, which is running")


def test_a_disk_without_room_for_instances(settings: Settings) -> None:
    found = findings(settings, dicom_reserve_mib=2**30)["spool"]
    assert found.level is Level.PROBLEM
    assert "instances are refused" in found.text
    assert "CLARA_FLOW_DICOM_RESERVE_MIB" in found.remedy


def test_a_spool_on_another_disk_is_a_problem(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_dicom, "_device", lambda folder: len(folder.name))
    found = findings(settings)["spool"]
    assert found.level is Level.PROBLEM
    assert "different disks" in found.text


def test_tls_without_a_certificate_is_a_problem(settings: Settings, tmp_path: Path) -> None:
    port = free_port()
    assert "dicom_tls_certificate" in findings(settings, dicom_tls_port=port)["dicom tls"].text
    absent = {"dicom_tls_certificate": tmp_path / "absent.crt", "dicom_tls_key": tmp_path / "absent.key"}
    found = findings(settings, dicom_tls_port=port, **absent)["dicom tls"]
    assert found.level is Level.PROBLEM
    assert "No such file" in found.text


def test_tools_that_are_missing_are_noted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "Orthanc" else f"/usr/bin/{name}")
    found = findings(settings)["dicom tools"]
    assert found.level is Level.NOTE
    assert found.text == "no Orthanc (the demo brings a small PACS of its own)"
    assert found.remedy.startswith("apt-get install")


def test_a_gateway_for_everybody_is_noted(settings: Settings) -> None:
    open_to_all = findings(settings, host="0.0.0.0")  # noqa: S104
    assert "asks for no token" in open_to_all["gateway"].text
    guarded = findings(load_settings(gateway_token="long", gateway_port=settings.gateway_port), host="0.0.0.0")  # noqa: S104, S106
    assert "gateway" not in guarded


def test_the_command_tells_it(settings: Settings, taken: int) -> None:
    done = clara_flow(settings, "doctor", CLARA_FLOW_DICOM_PORT=str(taken))
    assert done.returncode == 1
    assert f"problem  port {taken}" in done.stdout
    assert "choose another port with CLARA_FLOW_DICOM_PORT" in done.stdout
