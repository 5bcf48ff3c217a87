"""Every error of our tree is a problem answer, and an error of ours gives nothing away."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from fastapi import FastAPI

from clara_flow import errors
from clara_flow.services import problems

PLANTED = "Doe^Jane"

ANSWERS = [
    (errors.NotFound("there is none"), 404),
    (errors.Conflict("it exists"), 409),
    (errors.InputError("bad"), 400),
    (errors.PayloadError("bad files"), 400),
    (errors.DefinitionInvalid("x.yaml", ("x.yaml:1:1: bad",)), 400),
    (errors.SettingsError("bad setting"), 400),
    (errors.ResourcesNeverFit("op", missing={"gpu": 1}), 422),
    (errors.StaleOwner("late"), 409),
    (errors.StorageError("full"), 507),
    (errors.ServiceError("PostgreSQL", "away", remedy="Wait."), 503),
    (errors.InvalidTransition("no"), 409),
    (errors.JobFaulted("job"), 500),
]


def asked(path: str, raising: Exception) -> httpx.Response:
    """What an application answers whose only route raises that."""
    app = FastAPI()
    problems.install(app)

    @app.get("/{number}")
    def get(number: int) -> None:
        raise raising

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as asking:
            return await asking.get(path)

    return asyncio.run(ask())


@pytest.mark.parametrize(("error", "status"), ANSWERS, ids=lambda value: type(value).__name__)
def test_an_error_is_a_problem(error: errors.ClaraFlowError, status: int) -> None:
    answer = asked("/1", error)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert answer.json()["detail"] == str(error)
    assert answer.json()["title"]


def test_what_nobody_foresaw_is_answered_and_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = asked("/1", RuntimeError(PLANTED))
    assert answer.status_code == 500
    assert answer.json()["title"] == "Internal Server Error"
    assert "RuntimeError" in caplog.text
    assert PLANTED not in caplog.text + answer.text


def test_a_wrong_shape_is_named_without_its_value() -> None:
    answer = asked(f"/{PLANTED}", RuntimeError())
    assert answer.status_code == 400
    assert "path.number" in answer.json()["detail"]
    assert PLANTED not in answer.text


def test_an_unknown_path_is_a_problem_too() -> None:
    answer = asked("/1/2", RuntimeError())
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
