"""STOW-RS (PS3.18 10.5): instances by HTTP, through the spool like those that come by C-STORE."""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from clara_flow.deployments.trigger import House
from clara_flow.errors import InputError, NotFound, StorageError
from clara_flow.services.dicom.file_intake import FileDoor, FileIntake, OpenAssociation, Outcome
from clara_flow.services.dicom.listener_config import AeTitleRule
from clara_flow.services.dicom.web_multipart import MultipartReader, PartBegin, PartEnd, boundary_of, content_type
from clara_flow.services.problems import problem_response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CALLING = "STOW-RS"  # there is no calling AE title
RETRY_AFTER_S = 60
MOST_PARTS = 20_000  # of a request: the answer tells of each of them
JSON = "application/dicom+json"


class StowReceiver:
    """The parts of one request: fed with its body, it stores every part as soon as it is whole.

    outcomes    of all parts so far. Not for several threads at once.
    """

    def __init__(self, association: OpenAssociation, boundary: str, *, study: str = "") -> None:
        self._association = association
        self._study = study
        self._reader = MultipartReader(boundary)
        self._part: FileIntake | None = None
        self.outcomes: list[Outcome] = []

    def feed(self, data: bytes) -> None:
        """The next bytes of the body. Raises InputError."""
        for event in self._reader.feed(data):
            if isinstance(event, PartBegin):
                if len(self.outcomes) == MOST_PARTS:
                    raise InputError(f"the body has more than {MOST_PARTS} parts: send them in several requests")
                kind, _ = content_type(event.headers.get("content-type", "application/dicom"))
                if kind != "application/dicom":
                    raise InputError("a part of the body is not application/dicom")
                self._part = FileIntake(self._association, study=self._study)
            elif self._part is None:
                continue
            elif isinstance(event, PartEnd):
                self.outcomes.append(self._part.finish())
                self._part = None
            else:
                self._part.write(event)

    def close(self) -> None:
        """The body is over. Raises InputError when it was cut off."""
        self._reader.close()

    def abandon(self) -> None:
        """The body will never be whole: its last part goes."""
        if self._part is not None:
            self._part.abandon()
            self._part = None


def response_of(outcomes: list[Outcome], base: str) -> tuple[int, dict[str, Any]]:
    """HTTP status and body (PS3.18 tables 10.5.3-1 and I.2-1): 200 all stored, 202 some, 409 none.

    base    address of DICOMweb, for the Retrieve URLs.
    """
    stored = [one for one in outcomes if one.is_success]
    failed = [one for one in outcomes if not one.is_success]
    body: dict[str, Any] = {}
    studies = {one.study for one in stored if one.study}
    if len(studies) == 1:
        body["00081190"] = {"vr": "UR", "Value": [f"{base}/studies/{studies.pop()}"]}
    if failed:
        items = [{**_reference(one), "00081197": {"vr": "US", "Value": [one.status]}} for one in failed]
        body["00081198"] = {"vr": "SQ", "Value": items}
    if stored:
        body["00081199"] = {"vr": "SQ", "Value": [{**_reference(one), **_address(one, base)} for one in stored]}
    return (202 if stored else 409) if failed else 200, body


def _reference(one: Outcome) -> dict[str, Any]:
    uids = (("00081150", one.sop_class), ("00081155", one.sop_instance))
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids if uid}


def _address(one: Outcome, base: str) -> dict[str, Any]:
    if not one.is_new:
        return {}
    path = f"{base}/studies/{one.study}/series/{one.series}/instances/{one.sop_instance}"
    return {"00081190": {"vr": "UR", "Value": [path]}}


class Store:
    """Answers STOW-RS requests."""

    def __init__(self, house: House) -> None:
        self.door = FileDoor(house.settings)

    async def store(self, request: Request, ae: str, study: str = "") -> Response:
        """Take the body as it comes; the answer says what became of each part."""
        rule, is_short = await anyio.to_thread.run_sync(self._asked, ae)
        try:
            kind, parameters = content_type(request.headers.get("content-type", ""))
            boundary = boundary_of(request.headers.get("content-type", ""))
            if parameters.get("type", "application/dicom").lower() != "application/dicom":
                raise InputError(f'{kind} of type="application/dicom" is taken')
            if request.headers.get("content-encoding", "identity").lower() != "identity":
                raise InputError("the body must not be compressed: send it without Content-Encoding")
        except InputError as error:
            return problem_response(error, status=415)
        if is_short:
            full = StorageError("the disk is nearly full: nothing is taken until there is room")
            return problem_response(full, status=503, headers={"Retry-After": str(RETRY_AFTER_S)})
        outcomes = await self._receive(request, rule, boundary, study)
        if not outcomes:
            raise InputError("there is no part in the body")
        status, body = response_of(outcomes, f"{str(request.base_url).rstrip('/')}/dicom-web")
        return JSONResponse(body, status, media_type=JSON)

    def _asked(self, ae: str) -> tuple[AeTitleRule, bool]:
        """The rule of the AE title, and whether the disk is nearly full: both look at files. Raises NotFound."""
        return self.door.rule_of(ae), self.door.space.is_short()

    async def _receive(self, request: Request, rule: AeTitleRule, boundary: str, study: str) -> list[Outcome]:
        """Files are written and flushed by a thread, so that requests do not wait for each other's disk."""
        peer = request.client.host if request.client else ""
        in_thread = anyio.to_thread.run_sync
        stack = ExitStack()
        association = await in_thread(stack.enter_context, self.door.association(rule, calling=CALLING, peer=peer))
        receiver = StowReceiver(association, boundary, study=study)
        try:
            async for piece in request.stream():
                await in_thread(receiver.feed, piece)
            receiver.close()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await in_thread(receiver.abandon)
                await in_thread(stack.__exit__, type(error), error, None)
            if isinstance(error, ClientDisconnect):
                raise InputError("the body was cut off") from None
            raise
        await in_thread(stack.close)
        return receiver.outcomes


def router(house: House) -> APIRouter:
    """`/dicom-web/<AE title>/studies` and `/dicom-web/<AE title>/studies/<study>`."""
    store = Store(house)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        store.door.close()

    routes = APIRouter(prefix="/dicom-web", tags=["DICOMweb"], lifespan=lifespan)

    @routes.post("/studies")
    @routes.post("/studies/{study}")
    async def post_nowhere() -> Response:
        raise NotFound(
            "instances are stored for one of our AE titles: POST to /dicom-web/<AE title>/studies "
            "(`clara-flow dicom aetitle list` shows them)"
        )

    @routes.post("/{ae}/studies")
    async def post_studies(request: Request, ae: str) -> Response:
        return await store.store(request, ae)

    @routes.post("/{ae}/studies/{study}")
    async def post_study(request: Request, ae: str, study: str) -> Response:
        return await store.store(request, ae, study)

    return routes
