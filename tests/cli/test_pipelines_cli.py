"""`clara-flow check` and `clara-flow compile`: what they print, where, and with which exit status."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from clara_flow.cli.start import main
from clara_flow.flows.compiler import compile_pipeline
from clara_flow.plan import Plan

GOOD = """\
api-version: 0.4.0
name: good
parameters: {TAG: 1.10}
operators:
- name: only
  container: {image: clara/reader, tag: "${{TAG}}"}
  input: [{path: /input}]
  output: [{path: /output}]
"""
WARNS = GOOD.replace("name: good", "name: good\ncolour: blue")
WRONG = GOOD.replace("/output", "output").replace("clara/reader", "Clara/Reader")


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run a command in a folder with the files good, warns and wrong.yaml, with default settings."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("good", GOOD), ("warns", WARNS), ("wrong", WRONG)):
        Path(f"{name}.yaml").write_text(text)

    def run(*arguments: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["clara-flow", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), told.out, told.err)

    return run


def test_check_is_silent_when_all_is_well(call: Call) -> None:
    assert call("check", "good.yaml", "brain-extraction") == Outcome(0, "", "")
    assert call("check", "--verbose", "good.yaml") == Outcome(0, "", "good.yaml: ok\n")


def test_check_tells_warnings_and_goes_on(call: Call) -> None:
    outcome = call("check", "warns.yaml", "good.yaml")
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err.startswith('warns.yaml:3:1: warning: the pipeline has no key "colour"; it is ignored')
    assert outcome.err.count("\n") == 1


def test_check_tells_every_error_of_every_file(call: Call) -> None:
    outcome = call("check", "wrong.yaml", "good.yaml", "wrong.yaml")
    assert (outcome.status, outcome.out) == (1, "")
    lines = outcome.err.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["[P14]", "[P08]"] * 2
    assert lines[1] == 'wrong.yaml:8:19: path "output" is not absolute; it must start with / [P08]'


def test_check_reads_standard_input_and_its_imports_from_here(call: Call) -> None:
    assert call("check", "-", stdin=GOOD.encode()) == Outcome(0, "", "")
    text = "api-version: 0.4.0\nname: imports\noperators:\n- import: {path: part.yaml}\n"
    outcome = call("check", "-", stdin=text.encode())
    assert outcome.err.splitlines()[0] == '<stdin>:4:18: file "part.yaml" does not exist [P17]'
    Path("part.yaml").write_text(GOOD.replace("parameters", "parameter"))
    assert "part.yaml:3:1:" in call("check", "-", stdin=text.encode()).err


def test_files_that_cannot_be_read_do_not_hide_the_others(call: Call, tmp_path: Path) -> None:
    Path("latin.yaml").write_bytes("name: Köln".encode("latin-1"))
    outcome = call("check", "gone.yaml", str(tmp_path), "latin.yaml", "wrong.yaml")
    assert outcome.status == 3
    assert "gone.yaml does not exist; give the path of a pipeline definition or the name of a bundled" in outcome.err
    assert f"{tmp_path} is a folder" in outcome.err
    assert "latin.yaml:1:8: not text in UTF-8: byte 0xf6 [P01]" in outcome.err
    assert "wrong.yaml:8:19:" in outcome.err


def test_check_as_json_has_every_fact(call: Call) -> None:
    outcome = call("check", "--json", "good.yaml", "wrong.yaml", "gone.yaml")
    assert (outcome.status, outcome.err) == (3, "")
    good, wrong, gone = json.loads(outcome.out)
    assert good == {"file": "good.yaml", "ok": True, "problems": []}
    assert (gone["ok"], "does not exist" in gone["unreadable"]) == (False, True)
    assert wrong["problems"][1] == {
        "source": "wrong.yaml",
        "line": 8,
        "column": 19,
        "message": 'path "output" is not absolute; it must start with /',
        "code": "P08",
        "severity": "error",
        "pointer": "/operators/0/output/0/path",
    }


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_compile_prints_the_plan(call: Call, form: str) -> None:
    outcome = call("compile", "good.yaml", "--format", form, "--set", "TAG=2.0=x")
    assert outcome.status == 3  # `=` is not possible in a tag
    outcome = call("compile", "good.yaml", "--format", form, "--set", "TAG=2.0")
    assert (outcome.status, outcome.err) == (0, "")
    plan = Plan.model_validate(yaml.safe_load(outcome.out))
    assert plan == compile_pipeline(GOOD, source="good.yaml", arguments={"TAG": "2.0"}).plan


def test_compile_takes_the_settings_defaults(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLARA_FLOW_OPERATOR_MEMORY_DEFAULT_MIB", "333")
    plan = Plan.model_validate_json(call("compile", "good.yaml").out)
    assert plan.operators[0].requests.memory_mib == 333


@pytest.mark.parametrize(("form", "start"), [("mermaid", ("---", "flowchart")), ("dot", "digraph"), ("svg", "<svg")])
def test_compile_draws(call: Call, form: str, start: str | tuple[str, ...]) -> None:
    assert call("compile", "brain-extraction", "--format", form, "-o", "drawing") == Outcome(0, "", "")
    drawn = Path("drawing").read_text("utf-8")
    assert drawn.startswith(start)
    assert "seg-writer" in drawn


def test_compile_resolves_to_one_file(call: Call) -> None:
    Path("main.yaml").write_text(
        "api-version: 0.4.0\nname: main\noperators:\n- import: {path: part.yaml, args: {TAG: 3}}\n"
    )
    Path("part.yaml").write_text(
        "api-version: 0.4.0\nname: part\nparameters: {TAG: latest}\n"
        "container: {image: clara/part, tag: '${{TAG}}'}\ninput: [{path: /input}]\n"
    )
    outcome = call("compile", "main.yaml", "--resolve-imports")
    assert (outcome.status, outcome.err) == (0, "")
    assert yaml.safe_load(outcome.out) == {
        "api-version": "0.4.0",
        "name": "main",
        "operators": [
            {
                "api-version": "0.4.0",
                "name": "part",
                "container": {"image": "clara/part", "tag": "3"},
                "input": [{"name": None, "path": "/input"}],
            }
        ],
    }
    Path("resolved.yaml").write_text(outcome.out)
    assert call("compile", "resolved.yaml").out == call("compile", "main.yaml").out


def test_compile_tells_warnings_beside_the_plan(call: Call) -> None:
    outcome = call("compile", "warns.yaml")
    assert outcome.status == 0
    assert "warning: the pipeline has no key" in outcome.err
    assert Plan.model_validate_json(outcome.out).name == "good"


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["wrong.yaml"], 3, "clara-flow: wrong.yaml has 2 problems:\nwrong.yaml:6:22: "),
        (["gone.yaml"], 3, "clara-flow: gone.yaml does not exist"),
        (["good.yaml", "--set", "TAG"], 2, "--set takes NAME=VALUE"),
        (["good.yaml", "--set", "TAGS=1"], 3, 'argument "TAGS" has no parameter; this document declares TAG'),
        (["good.yaml", "--resolve-imports", "--format", "svg"], 2, "--resolve-imports writes a definition in YAML"),
        (["good.yaml", "--format", "png"], 2, "png"),
        (["good.yaml", "-o", "no/such/folder.json"], 4, "no/such/folder.json cannot be written: No such file"),
        (["good.yaml", "-o", "."], 4, ". cannot be written: Is a directory"),
        (["good.yaml", "-o", "/dev/full"], 4, "/dev/full cannot be written: No space left on device"),
    ],
)
def test_compile_says_what_is_wrong(call: Call, arguments: list[str], status: int, told: str) -> None:
    outcome = call("compile", *arguments)
    assert (outcome.status, outcome.out) == (status, "")
    assert told in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("command", ["check", "compile"])
def test_help_ends_in_an_example(call: Call, command: str) -> None:
    outcome = call(command, "--help")
    assert outcome.status == 0
    assert f"Example: clara-flow {command}" in outcome.out
