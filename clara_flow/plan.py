"""The plan: what a pipeline definition compiles to and a job runs from. Immutable, JSON-serialisable.

A job never sees YAML: every default is filled in, every name resolved, every parameter substituted. The plan stands
beside the rooms because flows make it and tasks read it; the machinery (infra, records) must not know it.

Sizes are MiB where Clara's language says MB (spec: `memory: 8192` is 8 GiB); durations are seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

# Placeholders that only a running job can resolve; they stay in commands and variables of the plan.
BUILTINS = ("JOB_ID", "JOB_NAME", "PAYLOAD_ID", "PIPELINE_ID", "OPERATOR_NAME")

_PLACEHOLDER = re.compile(r"\$\{\{[ \t]*([A-Za-z0-9_-]+)[ \t]*\}\}")
_REFERENCE = re.compile(r"\$\$|\$\((?:([^)]*)\)|.*\Z)", re.DOTALL)  # the last branch: no `)` up to the end


def substitute_builtins(text: str, values: Mapping[str, str]) -> str:
    """`text` with each `${{NAME}}` that `values` knows replaced; others stay as they are. One pass.

    values      usually one entry for each of BUILTINS.

    >>> substitute_builtins("/data/${{ JOB_ID }}", {"JOB_ID": "7"})
    '/data/7'
    """
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def expand_command(command: tuple[str, ...], environment: Mapping[str, str]) -> tuple[str, ...]:
    """A container's command with `$(VAR)` replaced by its environment, by Kubernetes' rules.

    An unknown variable stays literal; `$$` is one `$`, so `$$(VAR)` gives the text `$(VAR)`. What is put in is not
    expanded again.

    >>> expand_command(("--port=$(PORT)", "$(NOBODY)", "$$(PORT)"), {"PORT": "80"})
    ('--port=80', '$(NOBODY)', '$(PORT)')
    """

    def replacement(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0].replace("$$", "$")
        return environment.get(found[1], found[0])

    return tuple(_REFERENCE.sub(replacement, argument) for argument in command)


RetryReason = Literal["lost", "preempted", "failed", "timed-out", "out-of-memory"]
RETRY_REASONS: tuple[RetryReason, ...] = get_args(RetryReason)
TENANT_LABEL = "tenant"  # key of a pipeline's `metadata`


class Frozen(BaseModel):
    """Base of the plan's parts: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Medium(StrEnum):
    """Where the bytes of an input or output live."""

    DISK = "disk"
    MEMORY = "memory"


class PlanType(Frozen):
    """Type of an input or output (api-version >= 0.5.0; untyped entries of older versions have none).

    type            `stream`, `array` or `string` (a primitive is an array of shape (1,)).
    element_type    for a stream any word (`dicom`); for an array a numpy dtype name (`float32`).
    shape           array dimensions; -1 where the producer decides at run time. Empty for a stream.
    """

    type: Literal["stream", "array", "string"]
    element_type: str = ""
    shape: tuple[int, ...] = ()

    @property
    def medium(self) -> Medium:
        """Streams live on disk, everything else in the job's FastIO volume."""
        return Medium.DISK if self.type == "stream" else Medium.MEMORY


class PlanInput(Frozen):
    """One input of an operator.

    name        as declared ("" when unnamed).
    path        absolute path inside the container ("" for memory types).
    upstream    name of the producing operator; "" = the job's payload.
    output      name of the upstream's output; "" = its only, unnamed output, or its whole folder.
    """

    name: str = ""
    path: str = ""
    upstream: str = ""
    output: str = ""
    type: PlanType | None = None


class PlanOutput(Frozen):
    """One output of an operator; `name` "" = the operator's whole folder."""

    name: str = ""
    path: str = ""
    type: PlanType | None = None


class PlanRequests(Frozen):
    """Resources that one running operator holds.

    memory_mib      a hard limit.
    gpu             whole devices.
    gpu_memory_mib  instead of whole devices: a share of the memory of one that others may share.
    """

    cpu: int = 1
    memory_mib: int = 1024
    gpu: int = 0
    gpu_memory_mib: int = 0


class PlanContainer(Frozen):
    """What to run. `image` keeps the definition's spelling, `tag` is always text ("" with a pinned `image@digest`)."""

    image: str
    tag: str = "latest"
    command: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """`image:tag`, as a container engine takes it."""
        return f"{self.image}:{self.tag}" if self.tag else self.image


class PlanModel(Frozen):
    """A model of the repository that an operator needs."""

    name: str
    version: str = "latest"
    platform: str = ""


class PlanConnection(Frozen):
    """How an operator reaches a service: an environment variable holding host:port, or a shared folder."""

    name: str
    kind: Literal["http", "file"]
    port: int | None = None
    path: str = ""


class PlanService(Frozen):
    """A pipeline service. `signature` (hash of image, tag, command and variables) says which jobs may share it."""

    name: str
    signature: str
    container: PlanContainer
    requests: PlanRequests = PlanRequests()
    variables: dict[str, str] = Field(default_factory=dict)
    connections: tuple[PlanConnection, ...] = ()


class PlanOperator(Frozen):
    """One node of the graph.

    services        each with this operator's own connections; equal signatures are one running instance.
    retries         further attempts after one that ended for a reason in `retry_on`; `failed` is a non-zero exit.
    early_start     its container may start while what it reads is still being made; None: the catalog decides.
    """

    name: str
    description: str = ""
    container: PlanContainer
    inputs: tuple[PlanInput, ...] = ()
    outputs: tuple[PlanOutput, ...] = ()
    variables: dict[str, str] = Field(default_factory=dict)
    requests: PlanRequests = PlanRequests()
    models: tuple[PlanModel, ...] = ()
    services: tuple[PlanService, ...] = ()
    timeout_s: int | None = None
    retries: int = 0
    retry_on: tuple[RetryReason, ...] = ("lost", "preempted")
    early_start: bool | None = None

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Names of the operators this one reads from, each once, in the order of the inputs."""
        return tuple(dict.fromkeys(entry.upstream for entry in self.inputs if entry.upstream))


class PlanEdge(Frozen):
    """Data flows from `source` ("" = the job's payload) to `target`; `output` is the source's output name."""

    source: str
    target: str
    output: str = ""


class Plan(Frozen):
    """A whole pipeline.

    operators       in a topological order that keeps the definition's where it can.
    fastio_mib      size of the job's FastIO volume; 0: it has none.
    preemptible     a job may go back to the queue between two operators.
    on_restart      what becomes of a job whose platform died: it goes on from its sealed operators, or ends evicted.
    """

    plan_version: Literal[1] = 1
    name: str
    api_version: str
    description: str = ""
    operators: tuple[PlanOperator, ...]
    edges: tuple[PlanEdge, ...] = ()
    pull_secrets: tuple[str, ...] = ()
    metadata: dict[str, str] = Field(default_factory=dict)
    timeout_s: int | None = None
    scheduling: Literal["operator", "gang"] = "operator"
    fastio_mib: int = 0
    preemptible: bool = False
    on_restart: Literal["resume", "evict"] = "resume"

    @property
    def tenant(self) -> str:
        """Whose jobs these are by the pipeline's own word; "" when it says nothing."""
        return self.metadata.get(TENANT_LABEL, "")

    def operator(self, name: str) -> PlanOperator:
        """The operator of that name, compared without case. Raises KeyError naming the operators there are."""
        for operator in self.operators:
            if operator.name.casefold() == name.casefold():
                return operator
        raise KeyError(f"no operator {name!r}; the plan has {', '.join(o.name for o in self.operators)}")

    def consumers(self, operator: str, output: str) -> tuple[str, ...]:
        """Names of the operators that read that output."""
        return tuple(edge.target for edge in self.edges if edge.source == operator and edge.output in (output, ""))
