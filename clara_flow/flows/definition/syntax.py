"""The typed syntax tree, which is also the one table of the language's keys."""

# ruff: noqa: RUF009 - `key` makes a dataclass field, as `dataclasses.field` does

from __future__ import annotations

from dataclasses import dataclass

from clara_flow.flows.definition.grammar import (
    CLARA_ORCHESTRATOR_SINCE,
    MODELS_SINCE,
    TYPED_SINCE,
    VERSIONS,
    FlagShape,
    NumberShape,
    Pairs,
    PairsShape,
    Part,
    PartShape,
    PartsShape,
    TextShape,
    TextsShape,
    is_typed,
    key,
)
from clara_flow.flows.definition.node import Text
from clara_flow.plan import RETRY_REASONS

LARGEST = 2**31 - 1
AMOUNT = NumberShape(0, LARGEST)
SECONDS = NumberShape(1, LARGEST)
DIMENSION = NumberShape(-1, LARGEST)
TEXT = TextShape()
FLAG = FlagShape()
PAIRS = PairsShape()
UNTYPED_IGNORED = "it is ignored"


@dataclass(slots=True, eq=False)
class Import(Part):
    """Another document, put in at this place."""

    path: Text | None = key(TEXT, "File, relative to this one and below it; no `..`.", required=True)
    args: Pairs = key(PAIRS, "Values for the parameters of the imported document.")


@dataclass(slots=True, eq=False)
class Container(Part):
    """What to run."""

    image: Text | None = key(TEXT, "Image, with or without a registry.", required=True)
    tag: Text | None = key(TEXT, "Tag of the image, always text; `latest` when absent.")
    command: tuple[Text, ...] = key(
        TextsShape(), "Command, or arguments of the image's entry point; `$(VAR)` is a variable of the container."
    )
    variables: Pairs = key(
        PAIRS,
        "Environment, as some published files write it.",
        advice="it is merged under the `variables` beside `container`, where it belongs",
    )


@dataclass(slots=True, eq=False)
class Requests(Part):
    """Resources that the running container holds."""

    cpu: Text | None = key(AMOUNT, "Processor cores; 0 or absent: the platform's default.")
    memory: Text | None = key(
        AMOUNT, "Memory limit in MB (read as MiB), over which it is killed; 0 or absent: the default."
    )
    gpu: Text | None = key(AMOUNT, "Whole GPUs, exclusive; 0 when absent.")
    gpu_memory: Text | None = key(AMOUNT, "MiB of one GPU that others may share, instead of `gpu`; 0 when absent.")


@dataclass(slots=True, eq=False)
class Entry(Part):
    """What inputs and outputs have in common."""

    name: Text | None = key(TEXT, "Name, legal and unique in the operator.", required_typed=True)
    path: Text | None = key(TEXT, "Absolute path in the container; memory types have none.", required_untyped=True)
    type: Text | None = key(
        TEXT,
        "`stream` (files), or in shared memory `array`, `string` or a primitive such as `float32`.",
        required_typed=True,
        since=TYPED_SINCE,
        before=UNTYPED_IGNORED,
    )
    element_type: Text | None = key(
        TEXT,
        "Of a stream any word, such as `dicom`; of an array a primitive.",
        since=TYPED_SINCE,
        before=UNTYPED_IGNORED,
    )
    shape: tuple[Text, ...] = key(
        TextsShape(DIMENSION),
        "Dimensions of an array; -1 or 0 where the producer decides when it runs.",
        since=TYPED_SINCE,
        before=UNTYPED_IGNORED,
    )
    format: Text | None = key(
        TEXT,
        "Alias of `element-type` for streams.",
        since=TYPED_SINCE,
        before=UNTYPED_IGNORED,
        advice="it is read as `element-type`, which is its proper name",
    )


@dataclass(slots=True, eq=False)
class Input(Entry):
    """What an operator reads: the job's payload, or an output of another operator."""

    upstream: Text | None = key(TEXT, "The operator that produces it; absent: the job's payload.", name="from")


@dataclass(slots=True, eq=False)
class Output(Entry):
    """What an operator writes."""


@dataclass(slots=True, eq=False)
class Model(Part):
    """A model of the model repository, loaded before the job starts."""

    name: Text | None = key(TEXT, "Name of the model.", required=True)
    version: Text | None = key(TEXT, "Its version, a number or `latest`.")
    platform: Text | None = key(TEXT, "Its framework, as the repository calls it.")


@dataclass(slots=True, eq=False)
class Connection(Part):
    """A way to reach a service."""

    name: Text | None = key(TEXT, "Variable of the operators that tells them the way.", required=True)


@dataclass(slots=True, eq=False)
class HttpConnection(Connection):
    """An address; the variable holds `host:port`."""

    port: Text | None = key(NumberShape(1024, 65535), "Fixed port; absent: any free one, which is safer.")


@dataclass(slots=True, eq=False)
class FileConnection(Connection):
    """A folder that the service and its operators share; the variable holds the operator's path to it."""

    path: Text | None = key(TEXT, "Absolute path of the folder in the service's container.", required=True)


@dataclass(slots=True, eq=False)
class Connections(Part):
    """How operators reach a service; at least one."""

    http: tuple[HttpConnection, ...] = key(PartsShape(HttpConnection), "Addresses.")
    file: tuple[FileConnection, ...] = key(PartsShape(FileConnection), "Shared folders.")


@dataclass(slots=True, eq=False)
class Unit(Part):
    """What operators and services have in common: each is a container, written in place or in its own file."""

    api_version: Text | None = key(
        TextShape(VERSIONS), "Version of the language; absent: the pipeline's.", own_file=True
    )
    name: Text | None = key(TEXT, "Name, legal and unique without regard to case.", required=True)
    description: Text | None = key(TEXT, "Free text.")
    container: Container | None = key(PartShape(Container), "What to run.", required=True)
    requests: Requests | None = key(PartShape(Requests), "Resources of the running container.")
    variables: Pairs = key(PAIRS, "Environment of the container; every value is text.")
    import_: Import | None = key(PartShape(Import), "Take the rest from its own file.", name="import")


@dataclass(slots=True, eq=False)
class Service(Unit):
    """A server that starts before the operators that need it."""

    connections: Connections | None = key(PartShape(Connections), "How operators reach it.", required=True)


@dataclass(slots=True, eq=False)
class Operator(Unit):
    """One step of the pipeline."""

    inputs: tuple[Input, ...] = key(PartsShape(Input), "What it reads; it starts when all is there.", name="input")
    outputs: tuple[Output, ...] = key(PartsShape(Output), "What it writes.", name="output")
    models: tuple[Model, ...] = key(PartsShape(Model), "Models it asks for.", since=MODELS_SINCE)
    services: tuple[Service, ...] = key(
        PartsShape(Service), "Services it talks to.", deprecated=(TYPED_SINCE, "models")
    )
    parameters: Pairs = key(PAIRS, "Names and default values for `${{NAME}}` in this operator.")
    timeout: Text | None = key(SECONDS, "Seconds after which this operator is stopped.")
    retries: Text | None = key(NumberShape(0, 10), "Further attempts when one ended for a reason in `retry-on`.")
    retry_on: tuple[Text, ...] = key(
        TextsShape(choices=RETRY_REASONS),
        "Reasons for a further attempt; absent: lost, preempted. A plain non-zero exit is `failed`.",
    )
    early_start: Text | None = key(
        FLAG, "Start the container while what it reads is still being made; absent: where the operator can use it."
    )


@dataclass(slots=True, eq=False)
class Pipeline(Part):
    """A pipeline definition."""

    api_version: Text | None = key(TextShape(VERSIONS), "Version of the language.", required=True)
    name: Text | None = key(TEXT, "Name of the pipeline.", required=True)
    description: Text | None = key(TEXT, "Free text.")
    orchestrator: Text | None = key(
        TextShape(("Clara", "Argo"), any_case=True), "Kept for old files.", since=CLARA_ORCHESTRATOR_SINCE
    )
    pull_secrets: tuple[Text, ...] = key(TextsShape(), "Names of the registry credentials to use.")
    metadata: Pairs = key(PAIRS, "Names and values for your own use.")
    parameters: Pairs = key(PAIRS, "Names and default values for `${{NAME}}`.")
    timeout: Text | None = key(SECONDS, "Seconds after which the whole job is stopped.")
    scheduling: Text | None = key(
        TextShape(("operator", "gang")), "Take resources per running operator (default) or all at once."
    )
    fastio: Text | None = key(
        AMOUNT, "MiB of shared memory for the job (its FastIO volume); 0 or absent: what its types need."
    )
    preemptible: Text | None = key(FLAG, "Whether a job may go back to the queue between two operators; absent: false.")
    on_restart: Text | None = key(
        TextShape(("resume", "evict")), "What becomes of a job whose platform died; absent: resume."
    )
    services: tuple[Service, ...] = key(
        PartsShape(Service),
        "Not possible here.",
        refused="services belong to the operators that use them; put it under an operator",
    )
    operators: tuple[Operator, ...] = key(PartsShape(Operator), "The steps; their order is free.", required=True)

    @property
    def version(self) -> str | None:
        """The api-version when it is a known one."""
        return known_version(self.api_version)

    def version_of(self, operator: Operator) -> str | None:
        """An operator's own version where it has one, else the pipeline's."""
        return known_version(operator.api_version) or self.version

    def is_typed(self, operator: Operator) -> bool | None:
        """Whether this operator's inputs and outputs have types; None when the version is unknown."""
        return is_typed(self.version_of(operator))


def known_version(text: Text | None) -> str | None:
    """The version that a text spells; None when it is none that we know."""
    return text.value if text is not None and text.value in VERSIONS else None
