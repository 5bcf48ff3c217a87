"""The doctor's checks of the way in and out for DICOM: ports, TLS, room for what is received, tools to try it with."""

from __future__ import annotations

import shutil
from pathlib import Path

from clara_flow.errors import SettingsError, StorageError
from clara_flow.services.findings import Finding, Findings, Level, size
from clara_flow.settings import Settings

LOWEST_FREE_PORT = 1024  # of those that need no privilege, as Linux is delivered
TOOLS = {  # what people call it -> a program that only it has, and what is done without
    "dcmtk": ("dcmdump", "the demo sends without it"),  # pynetdicom has an echoscu and a storescu, too
    "Orthanc": ("Orthanc", "the demo brings a small PACS of its own"),
}
REMEDY_TOOLS = "apt-get install dcmtk orthanc, to send and receive studies by hand."


def check_dicom(settings: Settings) -> Findings:
    """Can the adapter listen, has it room, can it speak TLS; are tools there to try it with; where it runs, does it?"""
    if not settings.dicom_port:
        yield Finding("dicom", Level.OK, "is switched off (dicom_port is 0)")
        return
    yield _port(settings, "dicom_port", "dicom", "the DICOM adapter")
    if settings.dicom_tls_port:
        yield _port(settings, "dicom_tls_port", "dicom", "the DICOM adapter")
        yield _tls(settings)
    yield _spool(settings)
    yield _tools()
    from clara_flow.services.doctor_dicom_traffic import check_dicom_traffic  # it takes the packages of the server

    yield from check_dicom_traffic(settings)


def check_gateway(settings: Settings) -> Findings:
    """Can it listen, and who can ask it?"""
    if not settings.gateway_port:
        yield Finding("gateway", Level.OK, "is switched off (gateway_port is 0)")
        return
    yield _port(settings, "gateway_port", "gateway", "the gateway")
    if settings.gateway_token is None and settings.host not in {"127.0.0.1", "localhost", "::1"}:
        text = f"listens on {settings.host} and asks for no token: whoever reaches it can read studies"
        yield Finding("gateway", Level.NOTE, text, "Set CLARA_FLOW_GATEWAY_TOKEN, and put a proxy with TLS before it.")


def _port(settings: Settings, setting: str, service: str, title: str) -> Finding:
    """A service that runs has its port; one that does not must be able to take it, or nothing starts."""
    from clara_flow.services import ports
    from clara_flow.services.platform import look

    port = getattr(settings, setting)
    status = next((status for status in look(settings).services if status.name == service), None)
    if (
        status is not None
        and status.pid is not None
        and status.address.endswith(f":{getattr(settings, f'{service}_port')}")
    ):
        return Finding(f"port {port}", Level.OK, f"is that of {title}, which is {status.state}")
    reason = ports.why_not_free(settings.host, port)
    if not reason:
        return Finding(f"port {port}", Level.OK, f"is free ({setting})")
    remedy = f"Stop that program, or choose another port with CLARA_FLOW_{setting.upper()}."
    if port < LOWEST_FREE_PORT and "in use" not in reason:
        remedy = f"sysctl net.ipv4.ip_unprivileged_port_start={port} allows it; or set CLARA_FLOW_{setting.upper()}."
    return Finding(f"port {port}", Level.PROBLEM, reason, remedy)


def _tls(settings: Settings) -> Finding:
    from clara_flow.services.dicom.wire.tls import server_context

    try:
        server_context(settings.dicom_tls_certificate, settings.dicom_tls_key, settings.dicom_tls_authorities)
    except SettingsError as error:
        return Finding("dicom tls", Level.PROBLEM, str(error), "Correct these settings, or unset dicom_tls_port.")
    asks = "peers show a certificate" if settings.dicom_tls_authorities else "peers need no certificate"
    return Finding("dicom tls", Level.OK, f"certificate and key fit; {asks}")


def _spool(settings: Settings) -> Finding:
    """Room on the disk that instances go to, as the listener counts it."""
    from clara_flow.services.dicom.places import Places
    from clara_flow.services.dicom.space import SpaceCheck

    space = SpaceCheck(Places.of(settings).spool, settings.dicom_watermark_percent, settings.dicom_reserve_mib)
    try:
        text = f"{size(space.free_bytes)} free, of which {size(space.reserved_bytes)} stay free"
        is_short = space.is_short()
    except StorageError as error:
        return Finding("spool", Level.PROBLEM, str(error), "Look at the disk of the data folder.")
    if _device(Places.of(settings).spool) != _device(settings.data_dir / "payloads"):
        text = "spool and payloads lie on different disks: what is received cannot become a payload (by hard links)"
        return Finding("spool", Level.PROBLEM, text, "Mount one disk at the data folder, not at folders in it.")
    if is_short:
        remedy = "Make room, or change CLARA_FLOW_DICOM_WATERMARK_PERCENT and CLARA_FLOW_DICOM_RESERVE_MIB."
        return Finding("spool", Level.PROBLEM, f"{text}: instances are refused until there is more", remedy)
    return Finding("spool", Level.OK, text)


def _device(folder: Path) -> int:
    """Of the file system that it lies on, or will."""
    return next(path for path in (folder, *folder.parents) if path.exists()).stat().st_dev


def _tools() -> Finding:
    lacks = [f"no {name} ({without})" for name, (program, without) in TOOLS.items() if not shutil.which(program)]
    if lacks:
        return Finding("dicom tools", Level.NOTE, "; ".join(lacks), REMEDY_TOOLS)
    return Finding("dicom tools", Level.OK, ", ".join(TOOLS))
