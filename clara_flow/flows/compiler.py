"""The compiler: a pipeline definition in, a plan out. Planning comes last and cannot fail."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from clara_flow.errors import DefinitionInvalid
from clara_flow.flows.definition.check import check_definition
from clara_flow.flows.definition.grammar import NumberShape, Pairs
from clara_flow.flows.definition.node import Text
from clara_flow.flows.definition.problem import Problem, Severity
from clara_flow.flows.definition.resolved import resolved_definition
from clara_flow.flows.definition.rules.p08_paths import normal
from clara_flow.flows.definition.rules.p14_images_and_models import split_reference
from clara_flow.flows.definition.syntax import FLAG, LARGEST, Connections, Container, Entry, Operator, Requests, Service
from clara_flow.flows.definition.tree import Site, Tree
from clara_flow.flows.definition.types import block_bytes, plan_type
from clara_flow.plan import (
    RETRY_REASONS,
    Plan,
    PlanConnection,
    PlanContainer,
    PlanEdge,
    PlanInput,
    PlanModel,
    PlanOperator,
    PlanOutput,
    PlanRequests,
    PlanService,
    PlanType,
    RetryReason,
)

if TYPE_CHECKING:
    from clara_flow.settings import Settings

UNICODE_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]")
NUMBER = NumberShape(0, LARGEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What containers and jobs get that ask for nothing.

    cpu, memory_mib     settings `operator_cpu_default`, `operator_memory_default_mib`.
    fastio_mib          FastIO volume of a job whose plan cannot tell what it needs (`fastio_default_mib`).
    """

    cpu: int = 1
    memory_mib: int = 1024
    fastio_mib: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Defaults:
        """Those of an installation."""
        return cls(
            cpu=settings.operator_cpu_default,
            memory_mib=settings.operator_memory_default_mib,
            fastio_mib=settings.fastio_default_mib,
        )


class CompileResult(NamedTuple):
    """A plan, or the errors that forbid it; warnings and infos come with both.

    definition  the resolved definition as plain values, ready for YAML: imports put in, parameters substituted,
                `name: null` for unnamed inputs and outputs. None where there is no plan.
    """

    source: str
    plan: Plan | None
    problems: tuple[Problem, ...]
    definition: dict[str, Any] | None = None

    def of(self, severity: Severity) -> tuple[Problem, ...]:
        """The problems of one severity, sorted by place."""
        return tuple(problem for problem in self.problems if problem.severity is severity)

    def require_plan(self) -> Plan:
        """The plan. Raises DefinitionInvalid with all errors when there is none."""
        if self.plan is None:
            raise DefinitionInvalid(self.source, tuple(map(str, self.of(Severity.ERROR))))
        return self.plan


def compile_pipeline(
    text: str | bytes,
    *,
    source: str,
    arguments: Mapping[str, str] | None = None,
    root: Path | None = None,
    defaults: Defaults = Defaults(),
    site: Site | None = None,
) -> CompileResult:
    """Check a definition and compile it. Raises nothing, whatever the text holds.

    defaults    what containers and jobs get that ask for nothing. The other parameters are those of `check_definition`.
    """
    checked = check_definition(text, source=source, arguments=arguments, root=root, site=site)
    if checked.tree is None or checked.errors:
        return CompileResult(source, None, checked.problems)
    plan = _plan(checked.tree, defaults)
    return CompileResult(source, plan, checked.problems, resolved_definition(checked.tree.pipeline))


class _ExactDumper(yaml.SafeDumper):
    """Quotes texts with Unicode's own line breaks: PyYAML would print them so that they are read back as spaces."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = '"' if UNICODE_BREAKS.search(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_ExactDumper.add_representer(str, _ExactDumper.represent_text)


def to_yaml(values: Any) -> str:
    """Plain values as YAML, keys in their order; read back, they are the same."""
    text: str = yaml.dump(values, Dumper=_ExactDumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _plan(tree: Tree, defaults: Defaults) -> Plan:
    pipeline = tree.pipeline
    operators = tuple(_operator(tree, operator, defaults) for operator in _in_order(tree))
    edges = dict.fromkeys(
        PlanEdge(source=entry.upstream, target=operator.name, output=entry.output)
        for operator in operators
        for entry in operator.inputs
    )
    return Plan(
        name=_text(pipeline.name),
        api_version=_text(pipeline.api_version),
        description=_text(pipeline.description),
        operators=operators,
        edges=tuple(edges),
        pull_secrets=tuple(secret.value for secret in pipeline.pull_secrets),
        metadata=_pairs(pipeline.metadata),
        timeout_s=_number(pipeline.timeout),
        scheduling="gang" if _text(pipeline.scheduling) == "gang" else "operator",
        fastio_mib=_number(pipeline.fastio) or _fastio_mib(operators, defaults),
        preemptible=_flag(pipeline.preemptible) or False,
        on_restart="evict" if _text(pipeline.on_restart) == "evict" else "resume",
    )


def _fastio_mib(operators: tuple[PlanOperator, ...], defaults: Defaults) -> int:
    """What the typed outputs need, in whole MiB and a quarter more; where some are open, at least the default."""
    sizes = [block_bytes(output.type) for operator in operators for output in operator.outputs if output.type]
    known_mib = -(-sum(size or 0 for size in sizes) // 2**20)
    needed_mib = known_mib + -(-known_mib // 4)
    return max(needed_mib, defaults.fastio_mib) if None in sizes else needed_mib


def _in_order(tree: Tree) -> list[Operator]:
    """Kahn's algorithm; of the operators that could come next, always the one that stands first in the file."""
    index = {id(operator): number for number, operator in enumerate(tree.operators)}
    waits = dict.fromkeys(index.values(), 0)
    readers: dict[int, list[int]] = {number: [] for number in waits}
    for operator in tree.operators:
        for entry in operator.inputs:
            upstream = tree.upstream_of(entry)
            if upstream is not None:
                readers[index[id(upstream)]].append(index[id(operator)])
                waits[index[id(operator)]] += 1
    ready = [number for number, count in waits.items() if count == 0]
    order: list[Operator] = []
    while ready:
        number = heapq.heappop(ready)
        order.append(tree.operators[number])
        for reader in readers[number]:
            waits[reader] -= 1
            if waits[reader] == 0:
                heapq.heappush(ready, reader)
    return order


def _operator(tree: Tree, operator: Operator, defaults: Defaults) -> PlanOperator:
    typed = bool(tree.pipeline.is_typed(operator))
    inputs = []
    for entry in operator.inputs:
        upstream = tree.upstream_of(entry)
        output = tree.output_of(upstream, entry) if upstream is not None else None
        inputs.append(
            PlanInput(
                name=_text(entry.name),
                path=_path(entry.path),
                upstream=_text(upstream.name) if upstream is not None else "",
                output=_text(output.name) if output is not None else "",
                type=_type(entry, typed=typed),
            )
        )
    return PlanOperator(
        name=_text(operator.name),
        description=_text(operator.description),
        container=_container(operator.container),
        inputs=tuple(inputs),
        outputs=tuple(
            PlanOutput(name=_text(output.name), path=_path(output.path), type=_type(output, typed=typed))
            for output in operator.outputs
        ),
        variables=_variables(operator.container, operator.variables),
        requests=_requests(operator.requests, defaults),
        models=tuple(
            PlanModel(name=_text(model.name), version=_text(model.version) or "latest", platform=_text(model.platform))
            for model in operator.models
        ),
        services=tuple(_service(service, defaults) for service in operator.services),
        timeout_s=_number(operator.timeout),
        retries=_number(operator.retries) or 0,
        retry_on=_retry_on(operator),
        early_start=_flag(operator.early_start),
    )


def _retry_on(operator: Operator) -> tuple[RetryReason, ...]:
    if operator.node.get("retry-on") is None:
        return ("lost", "preempted")
    said = {text.value for text in operator.retry_on}
    return tuple(reason for reason in RETRY_REASONS if reason in said)


def _service(service: Service, defaults: Defaults) -> PlanService:
    container = _container(service.container)
    variables = _variables(service.container, service.variables)
    connections = service.connections
    return PlanService(
        name=_text(service.name),
        signature=_signature(container, variables),
        container=container,
        requests=_requests(service.requests, defaults),
        variables=variables,
        connections=(*_http(connections), *_file(connections)),
    )


def _http(connections: Connections | None) -> list[PlanConnection]:
    found = connections.http if connections is not None else ()
    return [PlanConnection(name=_text(http.name), kind="http", port=_number(http.port)) for http in found]


def _file(connections: Connections | None) -> list[PlanConnection]:
    found = connections.file if connections is not None else ()
    return [PlanConnection(name=_text(file.name), kind="file", path=_path(file.path)) for file in found]


def _signature(container: PlanContainer, variables: Mapping[str, str]) -> str:
    """SHA-256 (hex) of image, tag, command and variables: equal signature, same running instance (Clara's rule)."""
    facts = [container.image, container.tag, container.command, sorted(variables.items())]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _container(container: Container | None) -> PlanContainer:
    if container is None:
        raise AssertionError("rule P03 lets no operator or service without a container through")
    image, tag = split_reference(container)
    return PlanContainer(image=image, tag=tag, command=tuple(text.value for text in container.command))


def _variables(container: Container | None, variables: Pairs) -> dict[str, str]:
    """The operator's own level wins over what stands under `container`."""
    return _pairs(container.variables if container is not None else ()) | _pairs(variables)


def _requests(requests: Requests | None, defaults: Defaults) -> PlanRequests:
    if requests is None:
        return PlanRequests(cpu=defaults.cpu, memory_mib=defaults.memory_mib)
    return PlanRequests(
        # 0 asks for nothing, so it gets the defaults; a limit of 0 would mean "no limit" to a container engine
        cpu=_number(requests.cpu) or defaults.cpu,
        memory_mib=_number(requests.memory) or defaults.memory_mib,
        gpu=_number(requests.gpu) or 0,
        gpu_memory_mib=_number(requests.gpu_memory) or 0,
    )


def _type(entry: Entry, *, typed: bool) -> PlanType | None:
    return plan_type(entry) if typed else None


def _text(text: Text | None) -> str:
    return text.value if text is not None else ""


def _path(text: Text | None) -> str:
    return normal(text.value) if text is not None else ""


def _number(text: Text | None) -> int | None:
    return NUMBER.parse(text) if text is not None else None


def _flag(text: Text | None) -> bool | None:
    return FLAG.parse(text) if text is not None else None


def _pairs(pairs: Pairs) -> dict[str, str]:
    return {name.value: text.value for name, text in pairs}
