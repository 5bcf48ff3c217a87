"""The process of our own Prefect server: Prefect's application, whose pages stay inside the house.

python -m clara_flow.deployments.prefect_server HOST PORT
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEEP_ALIVE_S = 5  # as Prefect starts it

# Prefect's UI carries an analytics client that calls its maker as soon as a page is loaded, even where
# PREFECT_SERVER_ANALYTICS_ENABLED is false (3.8.8). With this, a browser asks nobody but this server for anything.
PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "frame-ancestors 'none'",
    )
)


class PagePolicy:
    """Middleware: every answer carries PAGE_POLICY, which browsers heed on pages and others ignore."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", PAGE_POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def main(host: str, port: int) -> None:
    """Serve until SIGTERM."""
    import uvicorn  # Prefect's own server; `prefect server start` does the same after a second of more imports
    from prefect.server.api.server import create_app

    app = create_app(final=True)
    app.add_middleware(PagePolicy)
    uvicorn.run(app, host=host, port=port, timeout_keep_alive=KEEP_ALIVE_S, log_level="warning")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
