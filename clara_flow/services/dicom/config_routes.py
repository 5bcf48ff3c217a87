"""REST of the configuration: Clara's paths, bodies and codes; PUT and PATCH are ours.

PUT takes a whole body, PATCH a JSON Merge Patch (RFC 7386). A change is heard by listeners at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from fastapi import APIRouter, Body, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from clara_flow.deployments.trigger import House
from clara_flow.errors import Conflict, InputError, NotFound
from clara_flow.records import dicom_config as rows
from clara_flow.records.dicom_models import AeTitle, SourceNode
from clara_flow.services.dicom import config_bodies as bodies
from clara_flow.services.dicom.config_check import check_aetitle, check_destination, check_source

BASE = "/api/config"
NOT_CHANGED = {"created", "updated", "draining", "block", "block_updated"}

Content = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind of row as REST shows it. `key`: the column that it is known by."""

    path: str
    key: str
    body: type[bodies.AeTitleBody] | type[bodies.SourceBody] | type[bodies.DestinationBody]
    check: Callable[[Any], Any]
    shown: Callable[[Any], Content]
    listed: Callable[[sa.Engine], list[Any]]
    found: Callable[[sa.Engine, str], Any]
    add: Callable[[sa.Engine, Any], Any]
    update: Callable[..., Any]
    delete: Callable[[sa.Engine, str], Any]


def _add_routes(made: APIRouter, engine: sa.Engine, resource: Resource) -> None:
    whole, one = f"{BASE}/{resource.path}", f"{BASE}/{resource.path}/{{key:path}}"

    @made.get(whole, name=f"list {resource.path}")
    def list_() -> list[Content]:
        return [resource.shown(row) for row in resource.listed(engine)]

    @made.get(one, name=f"get {resource.path}")
    def get(key: str) -> Content:
        return resource.shown(resource.found(engine, key))

    @made.post(whole, name=f"add {resource.path}")
    def add(content: Content = Body()) -> Response:  # noqa: B008  as FastAPI has it
        row = resource.check(_row(resource, content))
        added = _with_400(partial(resource.add, engine, row))
        location = f"{whole}/{quote(getattr(added, resource.key), safe='')}"
        return JSONResponse(resource.shown(added), 201, headers={"Location": location})

    @made.put(one, name=f"replace {resource.path}")
    def put(key: str, content: Content = Body()) -> Content:  # noqa: B008
        return _replace(engine, resource, resource.found(engine, key), content, sent=content)

    @made.patch(one, name=f"change {resource.path}")
    def patch(key: str, content: Content = Body()) -> Content:  # noqa: B008
        row = resource.found(engine, key)
        return _replace(engine, resource, row, bodies.merged(resource.shown(row), content), sent=content)

    @made.delete(one, name=f"delete {resource.path}")
    def delete(key: str) -> Content:
        return resource.shown(_with_400(partial(resource.delete, engine, key)))


def _replace(engine: sa.Engine, resource: Resource, row: Any, content: Content, sent: Content) -> Content:
    key, member = getattr(row, resource.key), to_camel(resource.key)
    new = resource.check(_row(resource, {member: key, **content}))
    if getattr(new, resource.key) != key:
        raise InputError(f"`{member}` is the key and stays {key!r}: delete it, and add another one")
    columns = new.model_dump(exclude={*NOT_CHANGED, resource.key})
    if isinstance(row, SourceNode) and new.user_name == row.user_name and "password" not in map(str.lower, sent):
        columns["user_secret"] = row.user_secret  # nobody can send back what is never shown
    return resource.shown(_with_400(partial(resource.update, engine, key, **columns)))


def _row(resource: Resource, content: Content) -> Any:
    """The row that a body describes. Raises InputError that names members, never their values."""
    try:
        return resource.body.model_validate(content).row()
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in error.errors())
        raise InputError("; ".join(faults)) from None


def _with_400(change: Callable[[], Any]) -> Any:
    """What is there already, or a block's, is answered with 400 here, not 409: that is how Clara's adapter does."""
    try:
        return change()
    except Conflict as error:
        raise InputError(str(error)) from None


def _kept_aetitles(engine: sa.Engine) -> list[AeTitle]:
    """Without those that were deleted and drain."""
    return [row for row in rows.list_aetitles(engine) if not row.draining]


def _kept_aetitle(engine: sa.Engine, name: str) -> AeTitle:
    row = rows.get_aetitle(engine, name)
    if row.draining:
        raise NotFound(f"there is no AE title {name!r}", name=name)
    return row


RESOURCES = (
    Resource(
        path="claraaetitle",
        key="name",
        body=bodies.AeTitleBody,
        check=check_aetitle,
        shown=bodies.shown_aetitle,
        listed=_kept_aetitles,
        found=_kept_aetitle,
        add=rows.add_aetitle,
        update=rows.update_aetitle,
        delete=rows.delete_aetitle,
    ),
    Resource(
        path="sourceaetitle",
        key="ae_title",
        body=bodies.SourceBody,
        check=check_source,
        shown=bodies.shown_source,
        listed=rows.list_sources,
        found=rows.get_source,
        add=rows.add_source,
        update=rows.update_source,
        delete=rows.delete_source,
    ),
    Resource(
        path="destinationaetitle",
        key="name",
        body=bodies.DestinationBody,
        check=check_destination,
        shown=bodies.shown_destination,
        listed=rows.list_destinations,
        found=rows.get_destination,
        add=rows.add_destination,
        update=rows.update_destination,
        delete=rows.delete_destination,
    ),
)


def router(house: House) -> APIRouter:
    """`/api/config/...` on that house's tables."""
    made = APIRouter(tags=["configuration"])
    for resource in RESOURCES:
        _add_routes(made, house.engine, resource)
    return made
