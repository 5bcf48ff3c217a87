"""`clara-flow operators`: list, describe, build."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from clara_flow.cli.operators import app
from clara_flow.errors import LauncherUnavailable, SettingsError
from clara_flow.infra.images.build import ImageBuilder
from clara_flow.infra.images.catalog import bundled


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_list_shows_every_operator() -> None:
    result = invoke("list")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[1:] if line[0] != " "] == list(bundled().operators)


def test_list_as_json_is_what_the_catalog_holds() -> None:
    entries = json.loads(invoke("list", "--json").stdout)
    assert {entry["name"]: entry["module"] for entry in entries} == {
        operator.name: operator.module for operator in bundled().operators.values()
    }


@pytest.mark.parametrize("name", bundled().operators)
def test_describe_names_module_and_images(name: str) -> None:
    text = invoke("describe", name).stdout
    assert f"python -m {bundled().get(name).module}" in text
    assert all(image in text for image in bundled().images_of(name))


@pytest.mark.parametrize("command", ["describe", "build"])
def test_unknown_operator(command: str) -> None:
    result = invoke(command, "nosuch")
    assert isinstance(result.exception, SettingsError)
    assert "there is no bundled operator 'nosuch'" in str(result.exception)


@pytest.mark.parametrize("command", [(), ("list",), ("describe",), ("build",)])
def test_help_ends_with_an_example(command: tuple[str, ...]) -> None:
    assert f"Example: clara-flow operators {' '.join(command)}".strip() in invoke(*command, "--help").stdout


def test_build_without_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLARA_FLOW_DOCKER_BASE_URL", f"unix://{tmp_path}/docker.sock")
    result = invoke("build", "register-results")
    assert isinstance(result.exception, LauncherUnavailable)
    assert "no Docker engine answers" in str(result.exception)


@pytest.mark.docker
def test_build(monkeypatch: pytest.MonkeyPatch, image_builder: ImageBuilder, operator_images: dict[str, str]) -> None:
    monkeypatch.setenv("CLARA_FLOW_DOCKER_BASE_URL", image_builder.base_url or "")
    options = ["--base-image", image_builder.base_image, "--network", "host"]
    if image_builder.ca_bundle:
        options += ["--ca-bundle", str(image_builder.ca_bundle)]
    result = invoke("build", "register-results", *options)
    assert result.exit_code == 0
    assert operator_images["register-results"] in result.stderr
