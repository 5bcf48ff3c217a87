"""REST of the configuration: Clara's paths, bodies and codes, and PUT and PATCH, which it lacked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from services.gateway.serving import client, served

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config as rows
from clara_flow.records.database import connect
from clara_flow.records.dicom_blocks import follow_destinations
from clara_flow.records.dicom_models import Destination, DestinationKind
from clara_flow.services import problems
from clara_flow.services.dicom import config_routes
from clara_flow.services.dicom.config_check import is_secret

AETITLES, SOURCES, DESTINATIONS = (
    f"/api/config/{kind}" for kind in ("claraaetitle", "sourceaetitle", "destinationaetitle")
)
BRAIN: dict[str, Any] = {
    "aeTitle": "BRAIN",
    "processorSettings": {"pipeline-brain": "brain-extraction", "timeout": "5"},
}
CT: dict[str, Any] = {"aeTitle": "CT", "hostIp": "10.0.0.1"}
PACS: dict[str, Any] = {"name": "PACS", "aeTitle": "ORTHANC", "hostIp": "10.0.0.2", "port": 4242}
EACH = pytest.mark.parametrize(
    ("path", "body", "key"),
    [(AETITLES, BRAIN, "BRAIN"), (SOURCES, CT, "CT"), (DESTINATIONS, PACS, "PACS")],
    ids=["claraaetitle", "sourceaetitle", "destinationaetitle"],
)


@pytest.fixture
def rest(house: House) -> Iterator[httpx.Client]:
    app = FastAPI()
    app.include_router(config_routes.router(house))
    problems.install(app)
    with served(app, house.settings.gateway_port) as url, client(url) as asking:
        yield asking


def is_problem(response: httpx.Response, status: int) -> bool:
    """RFC 7807 with `title`, `status`, `detail`."""
    content = response.json()
    return (
        response.status_code == status == content["status"]
        and response.headers["content-type"] == "application/problem+json"
        and bool(content["title"])
        and bool(content["detail"])
    )


@EACH
def test_a_row_lives_by_post_get_and_delete(rest: httpx.Client, path: str, body: dict[str, Any], key: str) -> None:
    assert rest.get(path).json() == []
    added = rest.post(path, json=body)
    assert (added.status_code, added.headers["location"]) == (201, f"{path}/{key}")
    assert added.json().items() >= body.items()
    assert rest.get(added.headers["location"]).json() == added.json()
    assert rest.get(path).json() == [added.json()]
    deleted = rest.delete(f"{path}/{key}")
    assert deleted.status_code == 200
    assert deleted.json().items() >= body.items()
    assert rest.get(path).json() == []
    for again in (rest.get, rest.delete):
        assert is_problem(again(f"{path}/{key}"), 404)


@EACH
def test_doubles_and_bodies_of_another_shape_are_400(
    rest: httpx.Client, path: str, body: dict[str, Any], key: str
) -> None:
    rest.post(path, json=body)
    assert is_problem(rest.post(path, json=body), 400)
    assert is_problem(rest.post(path, json=[body]), 400)
    assert is_problem(rest.post(path, json={**body, "colour": "red"}), 400)
    assert is_problem(rest.post(path, json={}), 400)
    assert is_problem(rest.post(path, content=b"{"), 400)
    assert is_problem(rest.put(f"{path}/nobody", json=body), 404)
    assert is_problem(rest.patch(f"{path}/nobody", json={}), 404)


@EACH
def test_what_is_answered_can_be_put_back(rest: httpx.Client, path: str, body: dict[str, Any], key: str) -> None:
    before = rest.post(path, json=body).json()
    after = rest.put(f"{path}/{key}", json=before)
    assert after.status_code == 200
    assert {**after.json(), "updated": None} == {**before, "updated": None}


def test_members_are_taken_in_any_case_as_clara_does(rest: httpx.Client) -> None:
    assert rest.post(SOURCES, json={"AeTitle": "CT", "HostIp": "10.0.0.1"}).status_code == 201
    assert rest.get(f"{SOURCES}/CT").json()["hostIp"] == "10.0.0.1"


def test_the_key_of_an_ae_title_is_its_name(rest: httpx.Client) -> None:
    added = rest.post(AETITLES, json={**BRAIN, "name": "the head"})
    assert added.headers["location"] == f"{AETITLES}/the%20head"
    assert rest.get(added.headers["location"]).json()["aeTitle"] == "BRAIN"
    assert is_problem(rest.get(f"{AETITLES}/BRAIN"), 404)
    assert is_problem(rest.post(AETITLES, json={**BRAIN, "name": "other"}), 400)  # the AE title is taken


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        (AETITLES, {**BRAIN, "aeTitle": "SEVENTEEN_LETTERS"}, "at most 16"),
        (AETITLES, {**BRAIN, "processor": "nobody"}, "no job processor"),
        (AETITLES, {**BRAIN, "processorSettings": {}}, "at least one is needed"),
        (AETITLES, {**BRAIN, "processorSettings": {"pipeline-a": "a", "colour": "red"}}, "no such setting"),
        (AETITLES, {**BRAIN, "processorSettings": {"pipeline-a": 1}}, "processorSettings.pipeline-a"),
        (SOURCES, {**CT, "hostIp": " "}, "an IP address or a host name"),
        (DESTINATIONS, {**PACS, "port": 0}, "a port is 1 to 65535"),
        (DESTINATIONS, {**PACS, "port": "x"}, "port"),
        (DESTINATIONS, {**PACS, "hostIp": ""}, "an IP address or a host name"),
    ],
)
def test_what_cannot_be_used_is_400_with_the_reason(
    rest: httpx.Client, path: str, body: dict[str, Any], detail: str
) -> None:
    response = rest.post(path, json=body)
    assert is_problem(response, 400)
    assert detail in response.json()["detail"]
    assert rest.get(path).json() == []


def test_sixteen_characters_are_an_ae_title(rest: httpx.Client) -> None:
    assert rest.post(SOURCES, json={**CT, "aeTitle": "SIXTEEN_LETTERS_"}).status_code == 201


def test_an_ae_title_is_replaced_and_changed_in_part(rest: httpx.Client) -> None:
    rest.post(AETITLES, json={**BRAIN, "ignoredSopClasses": ["1.2"]})
    settings = {"pipeline-chest": "chest", "timeout": "7"}
    replaced = rest.put(f"{AETITLES}/BRAIN", json={"aeTitle": "BRAIN", "processorSettings": settings}).json()
    assert (replaced["processorSettings"], replaced["ignoredSopClasses"]) == (settings, [])
    patch = {"requireRelease": True, "processorSettings": {"timeout": None, "priority": "higher"}}
    changed = rest.patch(f"{AETITLES}/BRAIN", json=patch).json()
    assert changed["requireRelease"]
    assert changed["processorSettings"] == {"pipeline-chest": "chest", "priority": "higher"}
    assert is_problem(rest.patch(f"{AETITLES}/BRAIN", json={"processorSettings": {"pipeline-chest": None}}), 400)
    assert is_problem(rest.patch(f"{AETITLES}/BRAIN", json={"name": "other"}), 400)
    assert rest.get(f"{AETITLES}/BRAIN").json() == changed


def test_a_deleted_ae_title_drains_out_of_sight_and_can_be_added_again(rest: httpx.Client, engine: sa.Engine) -> None:
    rest.post(AETITLES, json=BRAIN)
    assert rest.delete(f"{AETITLES}/BRAIN").status_code == 200
    assert rows.get_aetitle(engine, "BRAIN").draining
    assert is_problem(rest.put(f"{AETITLES}/BRAIN", json=BRAIN), 404)
    assert rest.post(AETITLES, json=BRAIN).status_code == 201
    assert not rows.get_aetitle(engine, "BRAIN").draining


def test_a_password_is_never_shown_and_stays_until_it_is_changed(rest: httpx.Client, engine: sa.Engine) -> None:
    def secret() -> str:
        return rows.get_source(engine, "CT").user_secret

    added = rest.post(SOURCES, json={**CT, "userName": "ct", "password": "planted"})
    assert "planted" not in added.text
    assert secret() not in added.text
    assert added.json()["hasPassword"]
    assert is_secret("planted", secret())
    rest.put(f"{SOURCES}/CT", json={**added.json(), "hostIp": "10.0.0.9"})
    rest.patch(f"{SOURCES}/CT", json={"maximumAssociations": 2})
    row = rows.get_source(engine, "CT")
    assert (row.host, row.maximum_associations) == ("10.0.0.9", 2)
    assert is_secret("planted", secret())
    rest.patch(f"{SOURCES}/CT", json={"password": "other"})
    assert is_secret("other", secret())
    assert not rest.patch(f"{SOURCES}/CT", json={"password": None}).json()["hasPassword"]
    assert is_problem(rest.patch(f"{SOURCES}/CT", json={"userName": None, "password": "x"}), 400)
    assert is_problem(rest.patch(f"{SOURCES}/CT", json={"password": ["planted"]}), 400)


def test_a_faulty_body_is_not_repeated(rest: httpx.Client) -> None:
    response = rest.post(SOURCES, json={**CT, "userName": "ct", "password": ["planted"]})
    assert is_problem(response, 400)
    assert "planted" not in response.text


def test_destinations_are_found_in_any_case_and_may_be_dicomweb(rest: httpx.Client, engine: sa.Engine) -> None:
    rest.post(DESTINATIONS, json=PACS)
    assert rest.get(f"{DESTINATIONS}/pacs").json()["name"] == "PACS"
    cloud = rest.post(DESTINATIONS, json={"name": "CLOUD", "url": "https://pacs.example/dicom-web/"})
    assert cloud.json()["url"] == "https://pacs.example/dicom-web"
    assert rows.get_destination(engine, "CLOUD").kind is DestinationKind.STOW
    paused = rest.patch(f"{DESTINATIONS}/pacs", json={"paused": True, "storageCommitment": True}).json()
    assert (paused["name"], paused["paused"], paused["storageCommitment"]) == ("PACS", True, True)


def test_a_source_with_a_slash_in_its_ae_title_has_an_address(rest: httpx.Client) -> None:
    added = rest.post(SOURCES, json={**CT, "aeTitle": "A/B"})
    assert added.headers["location"] == f"{SOURCES}/A%2FB"
    assert rest.get(added.headers["location"]).json()["aeTitle"] == "A/B"
    assert rest.delete(added.headers["location"]).status_code == 200


def test_a_database_that_is_away_is_503(house: House) -> None:
    app = FastAPI()
    app.include_router(config_routes.router(replace(house, engine=connect("postgresql://nobody@127.0.0.1:1/none"))))
    problems.install(app)
    with served(app, house.settings.gateway_port) as url, client(url) as asking:
        assert is_problem(asking.get(SOURCES), 503)


def test_what_a_block_has_made_is_changed_there_and_paused_here(rest: httpx.Client, engine: sa.Engine) -> None:
    saved = datetime(2026, 1, 1, tzinfo=UTC)
    row = Destination(name="pacs", ae_title="P", host="10.0.0.2", port=104, block="pacs", block_updated=saved)
    follow_destinations(engine, [row], unclear=(), since=saved)
    url = "/api/config/destinationaetitle/PACS"
    shown = rest.get(url).json()
    assert shown["block"] == "pacs"
    assert rest.put(url, json=shown).status_code == 200
    assert rest.patch(url, json={"paused": True}).json()["paused"] is True
    for refused in (rest.patch(url, json={"port": 105}), rest.delete(url)):
        is_problem(refused, 400)
        assert "is made of the Prefect block 'pacs'" in refused.json()["detail"]
