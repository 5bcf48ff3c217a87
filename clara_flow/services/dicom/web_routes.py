"""DICOMweb (PS3.18): QIDO-RS and WADO-RS on received and produced objects, STOW-RS in through the spool.

`/dicom-web/...` is everything, `/dicom-web/<AE title>/...` what came in through that AE title and what was made of it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydicom
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydicom.tag import Tag

from clara_flow.deployments.trigger import House
from clara_flow.errors import InputError, NotFound
from clara_flow.services.dicom import web_query
from clara_flow.services.dicom.listener_config import ListenerConfigFile
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.web_accept import accepted_dicom, require_json
from clara_flow.services.dicom.web_multipart import PIECE_BYTES, parts
from clara_flow.services.dicom.web_produced import Found
from clara_flow.services.dicom.web_query import INSTANCE, SERIES, STUDY, Level
from clara_flow.services.dicom.web_shelf import Shelf, header_of, usual_header

JSON = "application/dicom+json"
LARGEST_INLINE_BYTES = 1024
RETRIEVE_URL = "00081190"
AVAILABILITY = "00080056"
BINARY = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}


class Web:
    """Answers queries and retrievals."""

    def __init__(self, house: House) -> None:
        self.shelf = Shelf(house)
        self._config = ListenerConfigFile(Places.of(house.settings).listener_config)

    def name_of(self, ae_title: str | None) -> str | None:
        """The name of one of our AE titles; None for None. Raises NotFound."""
        if ae_title is None:
            return None
        rule = self._config.current().aetitles.get(ae_title)
        if rule is None:
            raise NotFound(f"{ae_title[:16]!r} is none of our AE titles; `clara-flow dicom aetitle list` shows them")
        return rule.name

    def search(self, request: Request, level: Level, ae_title: str | None, **fixed: str) -> Response:
        """QIDO-RS: 200 with results, 204 without."""
        require_json(request.headers.get("accept", ""))
        query = web_query.parse(request.query_params.multi_items(), fixed)
        levels = [one for one in Level if one is level or KEYS[one] not in fixed]
        levels = levels[: levels.index(level) + 1]
        keywords = tuple(dict.fromkeys((*query.fields, *query.matches)))
        results: list[dict[str, Any]] = []
        passed, is_cut = 0, False
        for found in self.shelf.find(level, query.uids, self.name_of(ae_title)):
            header = header_of(found.path, None) if query.everything else usual_header(found.path, keywords)
            if header is None or not web_query.fits(query, header, found.counted):
                continue
            passed += 1
            if passed <= query.offset:
                continue
            if len(results) == query.limit:
                is_cut = True
                break
            content = web_query.result(query, levels, header, found.uids, found.counted)
            content[RETRIEVE_URL] = {"vr": "UR", "Value": [address_of(request, found)]}
            content[AVAILABILITY] = {"vr": "CS", "Value": ["ONLINE"]}
            results.append(content)
        headers = {}
        if is_cut and query.limit == web_query.LARGEST_LIMIT:  # PS3.18 8.3.4.4
            headers["Warning"] = f'299 {request.url.netloc} "The number of results exceeded the maximum supported"'
        elif query.fuzzy:
            headers["Warning"] = (
                f'299 {request.url.netloc} "The fuzzymatching parameter is not supported. '
                'Only literal matching has been performed."'
            )
        if not results:
            return Response(status_code=204, headers=headers)
        return JSONResponse(results, headers=headers, media_type=JSON)

    def retrieve(self, request: Request, ae_title: str | None, **fixed: str) -> Response:
        """WADO-RS: the files as they are, a part each; they are never transcoded."""
        files = self._files(ae_title, fixed)
        single = accepted_dicom(request.headers.get("accept", ""), {one.transfer_syntax for one in files}, len(files))
        if single:
            return StreamingResponse(pieces(files[0].path), media_type="application/dicom")
        boundary = uuid.uuid4().hex
        body = parts(
            boundary,
            ((f"application/dicom; transfer-syntax={one.transfer_syntax}", pieces(one.path)) for one in files),
        )
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        return StreamingResponse(body, headers={"content-type": kind})

    def metadata(self, request: Request, ae_title: str | None, **fixed: str) -> Response:
        """WADO-RS metadata: the headers as DICOM JSON, instance by instance, without pixels and large values."""
        require_json(request.headers.get("accept", ""))
        files = self._files(ae_title, fixed)
        return StreamingResponse(json_array(files), media_type=JSON)

    def _files(self, ae_title: str | None, fixed: Mapping[str, str]) -> list[Found]:
        files = self.shelf.instances({name: (uid,) for name, uid in fixed.items()}, self.name_of(ae_title))
        if not files:
            raise NotFound("there is no such study, series or instance here (any more)")
        return files


KEYS = {Level.STUDY: STUDY, Level.SERIES: SERIES, Level.INSTANCE: INSTANCE}


def address_of(request: Request, found: Found) -> str:
    """Where what was found is retrieved."""
    names = {STUDY: "studies", SERIES: "series", INSTANCE: "instances"}
    path = "".join(f"/{names[name]}/{uid}" for name, uid in found.uids.items())
    return f"{str(request.base_url).rstrip('/')}/dicom-web{path}"


def pieces(path: Path) -> Iterator[bytes]:
    """A file's content. Raises OSError: an answer that lacks a file is broken off, not ended."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while piece := file.read(PIECE_BYTES):
            yield piece


def json_array(files: Sequence[Found]) -> Iterator[bytes]:
    """The headers of files as a JSON array of DICOM JSON objects. Raises InputError for a file that has none."""
    start = b"["
    for one in files:
        header = header_of(one.path, None)
        if header is None:
            raise InputError("a file of it cannot be read")
        for element in list(header):
            if element.VR in BINARY and len(element.value or b"") > LARGEST_INLINE_BYTES:
                del header[element.tag]
        header[Tag(0x0008, 0x3002)] = pydicom.DataElement(0x00083002, "UI", one.transfer_syntax)
        yield start + header.to_json(suppress_invalid_tags=True).encode()
        start = b","
    yield b"]"


def router(house: House) -> APIRouter:
    """QIDO-RS and WADO-RS. Paths of all AE titles come first: an AE title `studies` is reached by them only."""
    routes = APIRouter(prefix="/dicom-web", tags=["DICOMweb"])
    web = Web(house)

    def add(prefix: str) -> None:
        """All paths below a prefix, which may have the parameter `ae`."""

        def searching(level: Level) -> Any:
            def search(request: Request, ae: str | None = None, study: str = "", series: str = "") -> Response:
                return web.search(request, level, ae, **_fixed(study, series))

            return search

        def retrieve(
            request: Request, study: str, ae: str | None = None, series: str = "", instance: str = ""
        ) -> Response:
            return web.retrieve(request, ae, **_fixed(study, series, instance))

        def metadata(
            request: Request, study: str, ae: str | None = None, series: str = "", instance: str = ""
        ) -> Response:
            return web.metadata(request, ae, **_fixed(study, series, instance))

        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        for path, level in (
            ("/studies", Level.STUDY),
            ("/series", Level.SERIES),
            ("/instances", Level.INSTANCE),
            (f"{study}/series", Level.SERIES),
            (f"{study}/instances", Level.INSTANCE),
            (f"{series}/instances", Level.INSTANCE),
        ):
            routes.add_api_route(prefix + path, searching(level), methods=["GET"])
        for path in (study, series, f"{series}/instances/{{instance}}"):
            routes.add_api_route(prefix + path, retrieve, methods=["GET"])
            routes.add_api_route(f"{prefix}{path}/metadata", metadata, methods=["GET"])

    add("")
    add("/{ae}")
    return routes


def _fixed(study: str, series: str = "", instance: str = "") -> dict[str, str]:
    return {name: uid for name, uid in ((STUDY, study), (SERIES, series), (INSTANCE, instance)) if uid}
