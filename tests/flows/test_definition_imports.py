"""Imports read nothing outside the definition's folder, end, and are told where they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from clara_flow.flows.compiler import CompileResult, compile_pipeline
from clara_flow.flows.definition.imports import MAX_IMPORT_DEPTH

READER = """\
api-version: 0.4.0
name: reader
container: {image: clara/reader}
input: [{path: /input}]
output: [{path: /output}]
"""


def importing(*paths: str) -> str:
    lines = ["api-version: 0.4.0", "name: importing", "operators:"]
    for number, path in enumerate(paths):
        lines += [f"- import: {{path: {path!r}}}", f"  name: o{number}"]
    return "\n".join(lines)


def compiled(folder: Path | None, *paths: str, source: str = "main.yaml") -> CompileResult:
    return compile_pipeline(importing(*paths), source=source, root=folder)


def errors(result: CompileResult) -> list[str]:
    return [str(problem) for problem in result.problems if problem.severity == "error"]


def test_problems_name_the_imported_file_beside_the_users_one(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "reader.yaml").write_text(READER.replace("/output", "output"))
    result = compiled(tmp_path, "parts/reader.yaml", source="pipelines/main.yaml")
    assert errors(result) == [
        'pipelines/parts/reader.yaml:5:17: path "output" is not absolute; it must start with / [P08]'
    ]
    assert result.problems[0].pointer == "/output/0/path"


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "reader.yaml").write_text(READER)
    (inside / "link.yaml").symlink_to(tmp_path / "reader.yaml")
    (inside / "folder").symlink_to(tmp_path)
    result = compiled(inside, "link.yaml", "folder/reader.yaml", str(tmp_path / "reader.yaml"), "a/../link.yaml")
    assert result.plan is None
    assert [problem.code for problem in result.problems] == ["P17"] * 4
    assert "is a link that leads out of the definition's folder" in result.problems[0].message


def test_only_files_are_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.yaml")
    long_name = "x" * 300 + ".yaml"
    result = compiled(tmp_path, "pipe.yaml", ".", long_name)
    assert [problem.code for problem in result.problems] == ["P17"] * 3
    assert errors(result)[2].endswith("cannot be read: File name too long [P17]")


def test_without_a_folder_there_are_no_imports() -> None:
    assert errors(compiled(None, "reader.yaml")) == [
        "main.yaml:4:18: this definition was handed in without its folder, so it cannot import files [P17]"
    ]


def test_depth_is_limited(tmp_path: Path) -> None:
    def chain(length: int) -> CompileResult:
        for number in range(1, length):
            text = f"api-version: 0.4.0\nname: n\nimport: {{path: {number + 1}.yaml}}\n"
            (tmp_path / f"{number}.yaml").write_text(text)
        (tmp_path / f"{length}.yaml").write_text(READER)
        return compiled(tmp_path, "1.yaml")

    assert errors(chain(MAX_IMPORT_DEPTH)) == []
    assert errors(chain(MAX_IMPORT_DEPTH + 1)) == [
        "8.yaml:3:16: imports are nested deeper than 8 levels [P17]",
    ]


def test_imports_of_imports_cannot_explode(tmp_path: Path) -> None:
    filler = "".join(f"  V{number}: x\n" for number in range(30_000))
    (tmp_path / "big.yaml").write_text(f"{READER}variables:\n{filler}")
    result = compiled(tmp_path, *["big.yaml"] * 100)
    assert result.plan is None
    assert {problem.code for problem in result.problems} == {"P17"}
    assert "imports bring in more than" in result.problems[0].message


def test_a_broken_import_hides_only_itself(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: [")
    text = importing("broken.yaml") + (
        "\n- name: next\n  container: {image: clara/next}\n  input:\n"
        "  - {from: o0, name: anything, path: /a}\n  - {from: o1, path: /b}\n"
    )
    found = errors(compile_pipeline(text, source="main.yaml", root=tmp_path))
    assert [line.rpartition(" ")[2] for line in found] == ["[P01]", "[P05]"]


@pytest.mark.parametrize("path", ["''", "~", "[a]", "{a: b}", "'a\\0b'", '"a\\0b"', "${{NOBODY}}"])
def test_odd_paths_are_problems(tmp_path: Path, path: str) -> None:
    text = f"api-version: 0.4.0\nname: odd\noperators:\n- import:\n    path: {path}\n"
    result = compile_pipeline(text, source="main.yaml", root=tmp_path)
    assert result.plan is None
    assert errors(result) != []
