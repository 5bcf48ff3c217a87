"""The gateway as a service: the process that answers HTTP."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from clara_flow.services import ports, prefect_server
from clara_flow.services.own_process import OwnProcess
from clara_flow.settings import Settings, environment_of

NAME = "gateway"
PROGRAM = "clara_flow.services.gateway"
ANSWER_TIMEOUT_S = 5.0


def url(settings: Settings) -> str:
    """Address of the gateway for clients on this machine."""
    return f"http://{prefect_server.client_host(settings)}:{settings.gateway_port}"


class GatewayService(OwnProcess):
    """The gateway's process. It answers as soon as its health request is answered, whatever that says of others:
    a gateway is not started again because the listener is silent."""

    name, title, program = NAME, "the gateway", PROGRAM

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, folder=settings.data_dir / "gateway", log_name="gateway.log")
        self.address = url(settings)

    def prepare(self) -> None:
        """End the gateway of a killed supervisor, see that the port is free."""
        super().prepare()
        ports.require_free(self.title, self.settings.host, self.settings.gateway_port, "CLARA_FLOW_GATEWAY_PORT")

    def environment(self) -> dict[str, str]:
        """This process's, without the user's own Prefect settings, and exactly our settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return inherited | environment_of(self.settings) | prefect_server.client_environment(self.settings)

    def silence(self) -> str:
        """Asks its health request, past every proxy."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.address}/health/live", timeout=ANSWER_TIMEOUT_S):
                return ""
        except urllib.error.HTTPError as answer:
            with answer:
                return "" if answer.code == 503 else f"its health request is answered with {answer.code}"
        except (OSError, ValueError):
            return "it does not answer its health request"
