"""Orthanc with DICOMweb, a PACS that others made: one for the session, emptied for each test that uses it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from platform_fixture import free_port
from waiting import eventually

PROGRAM = shutil.which("Orthanc", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
PLUGINS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"))
AE_TITLE = "ORTHANC"


@dataclass(frozen=True, slots=True)
class Orthanc:
    """One that runs. `web` asks its REST interface, `dicom_web` is the address of its DICOMweb."""

    port: int
    url: str
    web: httpx.Client
    ae_title: str = AE_TITLE

    @property
    def dicom_web(self) -> str:
        """Where its DICOMweb begins."""
        return f"{self.url}/dicom-web"

    def knows_node(self, name: str, ae_title: str, port: int, **more: Any) -> None:
        """A DICOM node on this machine that it may call."""
        node = {"AET": ae_title, "Host": "127.0.0.1", "Port": port, "Manufacturer": "Generic", **more}
        self.web.put(f"/modalities/{name}", json=node).raise_for_status()

    def knows_server(self, name: str, url: str) -> None:
        """A DICOMweb server that it may ask."""
        self.web.put(f"/dicom-web/servers/{name}", json={"Url": url, "HasDelete": False}).raise_for_status()

    def ask(self, path: str, question: Any) -> Any:
        """POST to its REST interface; the answer, which must be success."""
        answer = self.web.post(path, json=question)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def upload(self, file: Path) -> str:
        """Give it a file; its number there."""
        answer = self.web.post("/instances", content=file.read_bytes())
        return str(answer.raise_for_status().json()["ID"])

    def files(self) -> list[bytes]:
        """All that it holds, as it keeps it."""
        numbers = self.web.get("/instances").raise_for_status().json()
        return [self.web.get(f"/instances/{number}/file").raise_for_status().content for number in numbers]

    def clear(self) -> None:
        """Forget everything and everybody."""
        for kind in ("patients", "modalities", "dicom-web/servers"):
            for name in self.web.get(f"/{kind}").raise_for_status().json():
                self.web.delete(f"/{kind}/{name}").raise_for_status()


@contextmanager
def running(folder: Path, login: tuple[str, str] | None = None, **settings: Any) -> Iterator[Orthanc]:
    """Start it with its files in `folder`; skips where it, or its DICOMweb, is not installed.

    login       a user and a password that its HTTP asks for. settings: other ones than these.
    """
    plugin = next((path for place in PLUGINS for path in place.glob("libOrthancDicomWeb.so*")), None)
    if PROGRAM is None or plugin is None:
        pytest.skip("Orthanc with its DICOMweb plug-in is not installed (orthanc, orthanc-dicomweb)")
    port, http_port = free_port(), free_port()
    config = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": AE_TITLE,
        "DicomPort": port,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "OverwriteInstances": False,
        "StableAge": 1,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": login is not None,
        "RegisteredUsers": dict([login] if login else []),
        "HttpsVerifyPeers": False,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "orthanc.json"
    path.write_text(json.dumps(config))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, str(path)], env={**os.environ, "TCP_NODELAY": "1"}, stdout=log, stderr=subprocess.STDOUT
        )
    with httpx.Client(base_url=f"http://127.0.0.1:{http_port}", auth=login, trust_env=False, timeout=60) as web:

        def is_up() -> bool:
            assert process.poll() is None, (folder / "orthanc.log").read_text()
            with suppress(httpx.HTTPError):
                return web.get("/dicom-web/servers").status_code == 200
            return False

        try:
            eventually(is_up, within_s=60)
            yield Orthanc(port, f"http://127.0.0.1:{http_port}", web)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """The session's, started when first asked for."""
    with running(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture
def orthanc(orthanc_server: Orthanc) -> Orthanc:
    """The session's, empty."""
    orthanc_server.clear()
    return orthanc_server
