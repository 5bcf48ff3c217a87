"""P08: container paths are absolute, outside the system's folders, and do not overlap within an operator."""

from __future__ import annotations

from collections.abc import Iterator

from clara_flow.flows.definition.node import Text
from clara_flow.flows.definition.problem import Problem, problem_at, shown
from clara_flow.flows.definition.tree import Tree, label

CODE = "P08"
SYSTEM_FOLDERS = frozenset({"proc", "sys", "dev", "etc"})
MAX_LENGTH = 4095  # PATH_MAX of Linux without its NUL


def check(tree: Tree) -> Iterator[Problem]:
    """Paths of inputs, outputs and file connections."""
    for operator in tree.operators:
        paths = [entry.path for entry in (*operator.inputs, *operator.outputs) if entry.path is not None]
        yield from _check_mounts(paths, label(operator))
        for service in operator.services:
            files = service.connections.file if service.connections else ()
            yield from _check_mounts([file.path for file in files if file.path is not None], label(operator))


def normal(path: str) -> str:
    """A path as the plan holds it: no trailing and no doubled `/`."""
    return "/" + "/".join(part for part in path.split("/") if part)


def _check_mounts(paths: list[Text], where: str) -> Iterator[Problem]:
    good: list[tuple[tuple[str, ...], Text]] = []
    for path in paths:
        if path.is_open:
            continue
        fault = _fault(path.value)
        if fault:
            yield problem_at(path, f"path {shown(path.value)} {fault}", CODE)
        else:
            good.append((tuple(part for part in path.value.split("/") if part), path))
    good.sort(key=lambda entry: (entry[0], entry[1].line, entry[1].column))
    around: list[tuple[tuple[str, ...], Text]] = []  # paths that may hold the next one, outermost first
    for parts, path in good:
        while around and parts[: len(around[-1][0])] != around[-1][0]:
            around.pop()
        if around:
            outer_parts, outer = around[-1]
            relation = "is the same as" if outer_parts == parts else "lies inside"
            message = f"path {shown(path.value)} {relation} {shown(outer.value)} of line {outer.line} in {where}"
            yield problem_at(path, f"{message}; each input and output needs a folder of its own", CODE)
        around.append((parts, path))


def _fault(path: str) -> str:
    if not path.startswith("/"):
        return "is not absolute; it must start with /"
    if len(path.encode("utf-8", "surrogatepass")) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} bytes"
    parts = [part for part in path.split("/") if part]
    if not parts:
        return "is the container's root folder; use one below it, such as /input"
    if ".." in parts or "." in parts:
        return "has . or .. in it"
    if parts[0] in SYSTEM_FOLDERS:
        return f"lies in the system folder /{parts[0]}"
    if not path.isprintable():
        return "has control characters in it"
    return ""
