"""A DICOMweb server of the tests: a FastAPI app on a port of its own that answers as it is told to."""

from __future__ import annotations

import contextlib
import email
import email.policy
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from platform_fixture import free_port
from pydicom import dcmread
from waiting import eventually


class StowPeer:
    """What it was sent: requests as lists of (SOP Instance UID, bytes), and the headers of each."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[list[tuple[str, bytes]]] = []
        self.headers: list[dict[str, str]] = []


Answer = Callable[[list[str], int], tuple[int, Any]]


def stored(uids: list[str], failed: dict[str, int] | None = None) -> dict[str, Any]:
    """A STOW-RS response (PS3.18 Table 10.5.3-1)."""
    failed = failed or {}
    return {
        "00081199": {"vr": "SQ", "Value": [_item(uid) for uid in uids if uid not in failed]},
        "00081198": {
            "vr": "SQ",
            "Value": [{**_item(uid), "00081197": {"vr": "US", "Value": [why]}} for uid, why in failed.items()],
        },
    }


def _item(uid: str) -> dict[str, Any]:
    return {"00081155": {"vr": "UI", "Value": [uid]}}


@contextlib.contextmanager
def stow_peer(
    answer: Answer = lambda uids, number: (200, stored(uids)), *, login: str = "", **tls: Any
) -> Iterator[StowPeer]:
    """A server whose number-th request (from 0) is answered with what `answer` returns: status and JSON.

    login   what its requests must have as their header Authorization; else they are answered with 401.
    """
    app, peer = FastAPI(), StowPeer()

    @app.post("/dicom-web/studies")
    async def store(request: Request) -> Response:
        if login and request.headers.get("authorization") != login:
            return Response(status_code=401)
        head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + await request.body(), policy=email.policy.HTTP)
        parts = [part.get_payload(decode=True) for part in message.iter_parts()]  # type: ignore[attr-defined]
        instances = [(str(dcmread(BytesIO(part)).SOPInstanceUID), bytes(part)) for part in parts]
        number = len(peer.requests)
        peer.requests.append(instances)
        peer.headers.append(dict(request.headers))
        status, content = answer([uid for uid, _ in instances], number)
        if not isinstance(content, dict):
            return Response(content, status_code=status)
        import json

        return Response(json.dumps(content), status_code=status, media_type="application/dicom+json")

    port = free_port()
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", **tls)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    peer.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/dicom-web"
    try:
        yield peer
    finally:
        server.should_exit = True
        thread.join(10)
