"""Who may ask the gateway: whoever brings its token, where there is one; results also whoever is trusted."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from clara_flow.services.dicom.wire.sources import parse_address
from clara_flow.services.problems import problem_response

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})  # whoever watches over processes has no secrets


RESULTS = "/api/tasks"  # agents of Clara's results service know no tokens


class BearerToken:
    """Middleware: who brings no `Authorization: Bearer <token>` (RFC 6750) gets 401, except on OPEN_PATHS.

    trusted     addresses and networks from which RESULTS is asked without a token.
    """

    def __init__(self, app: ASGIApp, token: SecretStr, trusted: Iterable[str] = ()) -> None:
        self.app = app
        self._token = token.get_secret_value().encode()
        self._trusted = [ipaddress.ip_network(text) for text in trusted]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or refuse it."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._may_pass(scope):
            await self.app(scope, receive, send)
            return
        refusal = problem_response(
            "send the header `Authorization: Bearer <token>` with the token of CLARA_FLOW_GATEWAY_TOKEN",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refusal(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        return self._is_known(scope) or (_is_for_results(scope["path"]) and self._is_trusted(scope.get("client")))

    def _is_trusted(self, client: tuple[str, int] | None) -> bool:
        address = parse_address(client[0]) if client else None
        return address is not None and any(address in network for network in self._trusted)

    def _is_known(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        same = hmac.compare_digest(token.strip(), self._token)  # its time tells nothing of how much of it was right
        return bool(scheme.lower() == b"bearer" and same)


def _is_for_results(path: str) -> bool:
    return path == RESULTS or path.startswith(f"{RESULTS}/")
