"""The conformance statement: as the code is now, and complete where it lists what the code answers."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.routing import APIRoute

from clara_flow.deployments.trigger import House
from clara_flow.services.dicom import commitment_check, conformance_web, web_routes, web_store
from clara_flow.services.dicom import conformance_facts as facts
from clara_flow.services.dicom.conformance import statement
from clara_flow.services.dicom.wire import admission, commitment, procedure_step, store

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "dicom-conformance.md"
CT, SEG = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"


def statuses_of(module: ModuleType) -> set[str]:
    """Every `Status.<name>` in a module's source."""
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    return {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Status"
    }


def test_the_page_is_up_to_date() -> None:
    command = "python -m clara_flow.services.dicom.conformance > docs/reference/dicom-conformance.md"
    assert PAGE.read_text(encoding="utf-8") == statement(), f"run: {command}"


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (store, facts.STORED_WHEN),
        (commitment, {**facts.ASKED_WHEN, **facts.REPORTED_WHEN}),
        (procedure_step, facts.TOLD_WHEN),
        (commitment_check, facts.COMMITMENT_FAILS_WHEN),
    ],
)
def test_every_status_that_is_answered_is_told(module: ModuleType, told: dict[str, str]) -> None:
    assert set(told) == statuses_of(module)


def test_every_rejection_is_told_in_the_order_of_the_checks() -> None:
    assert list(facts.REJECTED_WHEN) == [rejection.name for rejection in admission.REJECTIONS]
    source = inspect.getsource(admission.admit)
    places = [source.index(f"return {name}") for name in rejection_names() if name != "BUSY"]  # asked before
    assert places == sorted(places)


def rejection_names() -> list[str]:
    """Of the constants."""
    known = {id(value): name for name, value in vars(admission).items() if isinstance(value, admission.Rejection)}
    return [known[id(rejection)] for rejection in admission.REJECTIONS]


def test_storage_classes_and_their_transfer_syntaxes() -> None:
    uids = {row[1] for row in facts.storage_classes()}
    assert {CT, SEG} <= uids
    assert "1.2.840.10008.1.1" not in uids
    taken = {uid for _, uid in facts.transfer_syntaxes(CT)}
    assert {"1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.90"} <= taken
    assert {uid for _, uid in facts.transfer_syntaxes("1.2.840.10008.1.1")} < taken


def test_the_statuses_of_peers_are_told_without_gaps_in_what_is_known() -> None:
    rows = {codes: state for codes, _, state in facts.export_statuses()}
    assert rows["0x0000"] == "SENT"
    assert rows["0xA700 to 0xA7FF"] == rows["any other"] == "FAILED"
    assert rows["0xA900 to 0xA9FF"] == "POISON"


def test_what_the_gateway_serves_is_told_and_no_more(house: House) -> None:
    routers = (web_routes.router(house), web_store.router(house))
    served = {
        (method, route.path)
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert conformance_web.resources() == served
