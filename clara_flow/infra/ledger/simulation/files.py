"""The files of a simulation: arrivals (CSV or JSON lines), nodes, quotas and durations (YAML). All I/O is here.

Sizes are MiB and named as in pipeline definitions; a time of day is `HH:MM`, `HH:MM:SS` or seconds from the start.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from clara_flow.errors import InputError
from clara_flow.infra.ledger.model import RESOURCES, Device, Node, Priority, Quota
from clara_flow.infra.ledger.simulation.workload import Arrival, Becomes, Duration, MachineEvent

DURATIONS_FILE = "durations.yaml"

_TIME = re.compile(r"(\d+):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?")


def seconds_of(text: object) -> object:
    """`08:30` or `08:30:15` as seconds; anything else as it is, for the field's own check.

    >>> seconds_of("01:00:30")
    3630.0
    """
    if isinstance(text, str) and (found := _TIME.fullmatch(text.strip())):
        return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3] or 0)
    return text


def _priority_of(text: object) -> object:
    if isinstance(text, str):
        if (name := text.strip().upper()) not in Priority.__members__:
            raise ValueError(f"is none of {', '.join(priority.name.lower() for priority in Priority)}")
        return Priority[name]
    return text


Seconds = Annotated[float, BeforeValidator(seconds_of), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Resources = dict[str, Annotated[int, Field(ge=0)]]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Arrival(_Row):
    at: Seconds
    pipeline: Annotated[str, Field(min_length=1)]
    tenant: str = ""
    priority: Annotated[Priority, BeforeValidator(_priority_of)] = Priority.NORMAL


class _Gpus(_Row):
    count: Annotated[int, Field(ge=1)] = 1
    memory: Annotated[int, Field(ge=1)]
    nvlink: bool = False


class _Node(_Row):
    name: Annotated[str, Field(min_length=1)]
    cpu: Annotated[int, Field(ge=1)]
    memory: Annotated[int, Field(ge=1)]
    fastio: Annotated[int, Field(ge=0)] = 0
    jobs: Annotated[int, Field(ge=1)] | None = None
    gpus: tuple[_Gpus, ...] = ()


class _Event(_Row):
    at: Seconds
    node: str
    gpu: Annotated[int, Field(ge=0)] | None = None
    becomes: Becomes


class _Nodes(_Row):
    nodes: Annotated[tuple[_Node, ...], Field(min_length=1)]
    events: tuple[_Event, ...] = ()


class _Quota(_Row):
    tenant: Annotated[str, Field(min_length=1)]
    weight: Positive = 1.0
    nominal: Resources = {}
    hard: Resources = {}

    @model_validator(mode="after")
    def _known_resources(self) -> _Quota:
        if unknown := sorted((self.nominal.keys() | self.hard.keys()) - set(RESOURCES)):
            raise ValueError(f"unknown resource {', '.join(unknown)}; there are {', '.join(RESOURCES)}")
        return self


class _Quotas(_Row):
    quotas: tuple[_Quota, ...] = ()


class _Duration(_Row):
    median_s: Positive
    p95_s: Positive | None = None
    gpu_busy: Share = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> _Duration:
        if self.p95_s is not None and self.p95_s < self.median_s:
            raise ValueError("p95_s is below median_s")
        return self


class _Durations(_Row):
    pipelines: dict[str, dict[str, _Duration]]


Shape = TypeVar("Shape", bound=_Row)


def read_arrivals(path: Path) -> list[Arrival]:
    """The arrivals by time: CSV with a header line, or JSON lines, of `at`, `pipeline`, `tenant`, `priority`.

    A row without a priority is normal, one without a tenant has "". Raises InputError.
    """
    arrivals = []
    for number, facts in _rows(path):
        row = _checked(_Arrival, facts, f"{path}:{number}")
        arrivals.append(Arrival(at_s=row.at, pipeline=row.pipeline, tenant=row.tenant, priority=row.priority))
    if not arrivals:
        raise InputError(f"{path} holds no arrivals; write one a line: at,pipeline,tenant,priority", path=str(path))
    return sorted(arrivals, key=lambda arrival: arrival.at_s)


def read_nodes(path: Path) -> tuple[list[Node], list[MachineEvent]]:
    """The machines, and what happens to them, by time. A node's GPU number n has the UUID `NAME/n`. Raises InputError.

    A node that names no number of jobs has twice its cores, at least 4, like the setting `node_jobs`.
    """
    found = _checked(_Nodes, _yaml(path), str(path))
    nodes = {row.name: _node(row) for row in found.nodes}
    if len(nodes) < len(found.nodes):
        raise InputError(f"{path}: two nodes have the same name", path=str(path))
    events = []
    for event in sorted(found.events, key=lambda event: event.at):
        device = f"{event.node}/{event.gpu}" if event.gpu is not None else None
        known = event.node in nodes and (device is None or device in {gpu.uuid for gpu in nodes[event.node].devices})
        if not known:
            what = event.node if event.gpu is None else f"GPU {event.gpu} of {event.node}"
            raise InputError(f"{path}: an event is about {what}, which is not among the nodes", path=str(path))
        events.append(MachineEvent(at_s=event.at, node=event.node, becomes=event.becomes, device=device))
    return list(nodes.values()), events


def read_quotas(path: Path) -> list[Quota]:
    """The tenants' quotas. Raises InputError."""
    return [
        Quota(tenant=row.tenant, weight=row.weight, nominal=row.nominal, hard=row.hard)
        for row in _checked(_Quotas, _yaml(path), str(path)).quotas
    ]


def read_durations(path: Path) -> dict[str, dict[str, Duration]]:
    """How long operators last: by name of the pipeline, then of the operator. Raises InputError."""
    return {
        pipeline: {
            operator: Duration(median_s=row.median_s, p95_s=row.p95_s or row.median_s, gpu_busy=row.gpu_busy)
            for operator, row in operators.items()
        }
        for pipeline, operators in _checked(_Durations, _yaml(path), str(path)).pipelines.items()
    }


def _node(row: _Node) -> Node:
    kinds = [kind for kind in row.gpus for _ in range(kind.count)]
    linked = frozenset(f"{row.name}/{number}" for number, kind in enumerate(kinds) if kind.nvlink)
    devices = []
    for number, kind in enumerate(kinds):
        uuid = f"{row.name}/{number}"
        links = linked - {uuid} if kind.nvlink else frozenset()
        devices.append(Device(uuid=uuid, memory_mib=kind.memory, links=links))
    return Node(
        name=row.name,
        cpu=row.cpu,
        memory_mib=row.memory,
        fastio_mib=row.fastio,
        jobs=row.jobs or max(4, 2 * row.cpu),
        devices=tuple(devices),
    )


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and fields of each row."""
    text = _text(path)
    if path.suffix in (".json", ".jsonl", ".ndjson"):
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}:{number}: no JSON: {error}", path=str(path)) from None
    else:
        reader = csv.DictReader(io.StringIO(text), restkey="more")
        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if value}


def _yaml(path: Path) -> Any:
    try:
        # every scalar stays text, for the fields' own checks: YAML 1.1 would read 10:30 as the number 630
        return yaml.load(_text(path), Loader=yaml.BaseLoader) or {}  # noqa: S506  BaseLoader makes only texts
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}", path=str(path)) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", path=str(path)) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is no UTF-8 text", path=str(path)) from None


def _checked(shape: type[Shape], facts: Any, place: str) -> Shape:
    try:
        return shape.model_validate(facts)
    except ValidationError as error:
        raise InputError("\n".join(_told(place, error.errors())), path=place) from None


def _told(place: str, problems: Iterable[Any]) -> Iterator[str]:
    for problem in problems:
        where = ".".join(str(part) for part in problem["loc"])
        yield f"{place}: {where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}"
