"""Who may ask the gateway: whoever brings its token, where there is one."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from clara_flow.services.problems import problem_response

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})  # whoever watches over processes has no secrets


class BearerToken:
    """Middleware: who brings no `Authorization: Bearer <token>` (RFC 6750) gets 401, except on OPEN_PATHS."""

    def __init__(self, app: ASGIApp, token: SecretStr) -> None:
        self.app = app
        self._token = token.get_secret_value().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or refuse it."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._is_known(scope):
            await self.app(scope, receive, send)
            return
        refusal = problem_response(
            "send the header `Authorization: Bearer <token>` with the token of CLARA_FLOW_GATEWAY_TOKEN",
            status=401,
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refusal(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        same = hmac.compare_digest(token.strip(), self._token)  # its time tells nothing of how much of it was right
        return bool(scheme.lower() == b"bearer" and same)
