"""The DICOM adapter as a service of the platform: it receives, groups, triggers, sends."""

from __future__ import annotations

import os
import socket

from clara_flow.services import prefect_server
from clara_flow.services.dicom.heartbeats import read_all
from clara_flow.services.dicom.places import Places
from clara_flow.services.own_process import OwnProcess
from clara_flow.services.ports import require_free
from clara_flow.settings import Settings, environment_of

NAME = "dicom"
PROGRAM = "clara_flow.services.dicom.adapter"
LISTENER_PROGRAM = "clara_flow.services.dicom.listener_process"
ADAPTER = "adapter"  # its own heartbeat
SILENT_S = 15.0
CONNECT_TIMEOUT_S = 2.0


class DicomService(OwnProcess):
    """The adapter. It answers when its port does and its own loop goes round."""

    name, title, program = NAME, "the DICOM adapter", PROGRAM
    helpers = (LISTENER_PROGRAM,)
    needs_earlier = False

    def __init__(self, settings: Settings) -> None:
        self.places = Places.of(settings)
        super().__init__(settings, folder=self.places.work, log_name="dicom.log")
        self.address = f"{settings.host}:{settings.dicom_port}"

    def environment(self) -> dict[str, str]:
        """This process's, with exactly our settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return inherited | environment_of(self.settings) | prefect_server.client_environment(self.settings)

    def prepare(self) -> None:
        """End what a killed supervisor left; its ports must be free then."""
        super().prepare()
        require_free(self.title, self.settings.host, self.settings.dicom_port, "CLARA_FLOW_DICOM_PORT")
        if self.settings.dicom_tls_port:
            require_free(self.title, self.settings.host, self.settings.dicom_tls_port, "CLARA_FLOW_DICOM_TLS_PORT")

    def silence(self) -> str:
        """Looks whether somebody can connect, and whether the adapter goes round."""
        beats = {beat.name: beat for beat in read_all(self.places.heartbeats)}
        own = beats.get(ADAPTER)
        if own is None or own.pid != self.pid or own.age_s > SILENT_S:
            return "its loop does not go round"
        try:
            socket.create_connection((self.settings.host, self.settings.dicom_port), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            return f"its port does not answer: {error.strerror or error}"
        return ""
