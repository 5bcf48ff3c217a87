"""P12: variables and connections have names that an environment can hold; ports are in range."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clara_flow.flows.definition.grammar import NumberShape, Pairs
from clara_flow.flows.definition.node import Text
from clara_flow.flows.definition.problem import Problem, Severity, problem_at, shown
from clara_flow.flows.definition.syntax import Connection, HttpConnection, Service
from clara_flow.flows.definition.tree import Tree, label

CODE = "P12"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
PORT = NumberShape(1024, 65535)
# The platform sets these last; a definition's own value has no effect.
RESERVED = frozenset(
    {
        "CLARA_JOB_ID",
        "CLARA_JOB_NAME",
        "CLARA_STAGE_NAME",
        "CLARA_PAYLOAD_ID",
        "CLARA_IO_MANIFEST",
        "CLARA_CPU",
        "NVIDIA_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES",
    }
)


def check(tree: Tree) -> Iterator[Problem]:
    """Variables of operators and services, and the connections of services."""
    for operator in tree.operators:
        yield from _check_variables(operator.variables)
        yield from _check_variables(operator.container.variables if operator.container else ())
        taken: dict[str, Text] = {}
        for service in operator.services:
            yield from _check_variables(service.variables)
            yield from _check_variables(service.container.variables if service.container else ())
            yield from _check_connections(service, taken, label(operator))


def _check_variables(variables: Pairs) -> Iterator[Problem]:
    for name, _ in variables:
        yield from _check_name(name)
        if name.value in RESERVED:
            message = f"{name.value} is set by the platform; this value has no effect"
            yield problem_at(name, message, CODE, Severity.WARNING)


def _check_name(name: Text) -> Iterator[Problem]:
    if not name.is_open and not VARIABLE.fullmatch(name.value):
        message = f"{shown(name.value)} cannot name a variable: letters, digits and _ can, not starting with a digit"
        yield problem_at(name, message, CODE)


def _check_connections(service: Service, taken: dict[str, Text], where: str) -> Iterator[Problem]:
    """`taken`: connection names of this operator so far, each of which becomes one variable."""
    if service.connections is None:
        return
    connections: tuple[Connection, ...] = (*service.connections.http, *service.connections.file)
    if not any(service.connections.node.get(kind) is not None for kind in ("http", "file")):
        yield problem_at(service.connections.node, "`connections` is empty; a service needs one `http` or `file`", CODE)
    for connection in connections:
        name = connection.name
        if name is not None and not name.is_open:
            yield from _check_name(name)
            earlier = taken.setdefault(name.value, name)
            if earlier is not name:
                message = (
                    f"two connections of {where} set the variable {shown(name.value)}; first in line {earlier.line}"
                )
                yield problem_at(name, message, CODE)
        port = connection.port if isinstance(connection, HttpConnection) else None
        if port is not None and not port.is_open and PORT.parse(port) is None:
            message = f"port {shown(port.value)} is not possible; {PORT.minimum} to {PORT.maximum} are"
            yield problem_at(port, message, CODE)
