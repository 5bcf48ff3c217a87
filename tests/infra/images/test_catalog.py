"""The catalog: operator.yaml files are checked, vendor images find stand-ins, commands lose the vendor's script."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clara_flow.errors import LauncherUnavailable, SettingsError
from clara_flow.infra.images.catalog import OPERATORS_DIR, Catalog, bundled, image_name, own_arguments

TINY = {
    "name": "tiny-reader",
    "version": "1.2.3",
    "title": "Tiny Reader",
    "description": "Reads nothing.",
    "module": "tiny.reader",
    "inputs": [{"name": "", "path": "/input", "description": "Anything.", "media": "dicom"}],
}


def write_catalog(folder: Path, **changes: object) -> Catalog:
    (folder / "tiny_reader").mkdir(exist_ok=True)
    (folder / "tiny_reader" / "operator.yaml").write_text(yaml.safe_dump({**TINY, **changes}))
    (folder / "images.yaml").write_text("tiny-reader: [vendor/tiny-reader, registry.example:5000/vendor/tiny]\n")
    return Catalog.load(folder, folder / "images.yaml")


@pytest.mark.parametrize(
    "reference",
    [
        "vendor/tiny-reader:0.8.1",
        "vendor/tiny-reader",
        "registry.example:5000/vendor/tiny:latest",
        "registry.example:5000/vendor/tiny",
        f"vendor/tiny-reader@sha256:{'0' * 64}",
        "clara-flow/tiny-reader:1.2.3",
    ],
)
def test_images_that_mean_the_operator(tmp_path: Path, reference: str) -> None:
    operator = write_catalog(tmp_path).find(reference)
    assert operator is not None
    assert operator.image == "clara-flow/tiny-reader:1.2.3"


@pytest.mark.parametrize("reference", ["vendor/other:1", "tiny-reader:1", "elsewhere/vendor/tiny-reader:1"])
def test_images_that_mean_none(tmp_path: Path, reference: str) -> None:
    assert write_catalog(tmp_path).find(reference) is None


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ((), ()),
        (("python", "register.py", "--agent", "X"), ("--agent", "X")),
        (("python3", "-u", "/app/main.py"), ()),
        (("/usr/bin/python3.8", "-W", "ignore", "-m", "app.main", "in", "out"), ("in", "out")),
        (("/app/register", "--agent", "X"), ("--agent", "X")),
        (("--agent", "X"), ("--agent", "X")),
    ],
)
def test_arguments_without_the_vendors_program(
    tmp_path: Path, command: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    catalog = write_catalog(tmp_path)
    as_process = catalog.resolve("vendor/tiny-reader:1", command, "process")
    assert as_process.command == (sys.executable, "-m", "tiny.reader", *arguments)
    in_docker = catalog.resolve("vendor/tiny-reader:1", command, "docker")
    assert (in_docker.image, in_docker.command) == ("clara-flow/tiny-reader:1.2.3", arguments)


def test_a_shell_line_is_refused_for_a_stand_in(tmp_path: Path) -> None:
    with pytest.raises(LauncherUnavailable, match=r"shell line.*Write the operator's arguments alone"):
        write_catalog(tmp_path).resolve("vendor/tiny-reader:1", ("sh", "-c", "cd /app && ./run"), "docker")


def test_another_image_needs_docker(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path)
    resolved = catalog.resolve("vendor/other:1", ("sh", "-c", "x"), "docker")
    assert (resolved.image, resolved.command, resolved.operator) == ("vendor/other:1", ("sh", "-c", "x"), None)
    with pytest.raises(LauncherUnavailable, match=r"'vendor/other:1' is not a bundled operator.*--runtime docker"):
        catalog.resolve("vendor/other:1", (), "process")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modul": "x"}, "modul: Extra inputs are not permitted"),
        ({"version": None}, "version: Input should be a valid string"),
        ({"name": "Tiny Reader"}, "name: String should match pattern"),
        ({"requests": {"memory": 0}}, "requests.memory: Input should be greater than or equal to 1"),
        ({"module": "os; import sys"}, "module: String should match pattern"),
    ],
)
def test_bad_operator_yaml_names_file_and_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        write_catalog(tmp_path, **changes)
    assert "tiny_reader/operator.yaml" in str(caught.value)


def test_broken_yaml(tmp_path: Path) -> None:
    write_catalog(tmp_path)
    (tmp_path / "tiny_reader" / "operator.yaml").write_text("name: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        Catalog.load(tmp_path, tmp_path / "images.yaml")


def test_two_operators_of_one_name(tmp_path: Path) -> None:
    write_catalog(tmp_path)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "operator.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.raises(SettingsError, match="another operator named 'tiny-reader'"):
        Catalog.load(tmp_path, tmp_path / "images.yaml")


def test_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no bundled operator 'x'; there is tiny-reader"):
        write_catalog(tmp_path).get("x")


WORD = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True)


@given(st.lists(WORD, min_size=1, max_size=4), st.integers(1, 65535), st.sampled_from(["", ":tag", ":1.0@sha256:ab"]))
def test_image_name_drops_tag_and_digest_only(path: list[str], port: int, tag: str) -> None:
    for name in ("/".join(path), f"host:{port}/{'/'.join(path)}"):
        assert image_name(name + tag) == name


@given(st.lists(st.text(min_size=1).filter(lambda word: not word.startswith("-")), max_size=4))
def test_arguments_after_a_script_are_never_touched(arguments: list[str]) -> None:
    assert own_arguments(("python3", "-u", "main.py", *arguments)) == tuple(arguments)


@pytest.mark.parametrize("folder", sorted(path.parent for path in OPERATORS_DIR.glob("*/operator.yaml")), ids=str)
def test_bundled_operators_are_what_their_folder_says(folder: Path) -> None:
    operator = next(o for o in bundled().operators.values() if o.name.replace("-", "_") == folder.name)
    assert operator.module == f"clara_flow.operators.{folder.name}"
    assert (folder / "__main__.py").exists()
    assert bundled().find(f"clara-flow/{operator.name}:any") == operator


def test_every_vendor_image_has_its_stand_in() -> None:
    assert set(bundled().images.values()) == set(bundled().operators)
