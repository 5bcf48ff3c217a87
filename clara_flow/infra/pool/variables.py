"""What an administrator may set for the runs of our work pool in the Prefect UI: on the pool, a deployment, one run.

Each overrules the one before it, in this order. A run that takes its pipeline's own values leaves all of them empty.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class PoolVariables(BaseModel):
    """The form: `gpus` to `memory` bound what operators may ask for, the rest takes the place of the pipeline's."""

    gpus: int | None = Field(
        None,
        ge=0,
        title="GPUs per operator, at most",
        description="A job with an operator that asks for more whole GPUs is refused. Empty: no limit.",
    )
    gpu_memory: int | None = Field(
        None,
        ge=0,
        title="GPU memory per operator, at most (MiB)",
        description="A job with an operator that asks for a larger share of a GPU is refused. Empty: no limit.",
    )
    cpu: int | None = Field(
        None,
        ge=1,
        title="CPU cores per operator, at most",
        description="A job with an operator that asks for more is refused. Empty: no limit.",
    )
    memory: int | None = Field(
        None,
        ge=1,
        title="Memory per operator, at most (MiB)",
        description="A job with an operator that asks for more is refused. Empty: no limit.",
    )
    fastio_size: int | None = Field(
        None,
        ge=0,
        title="FastIO volume (MiB)",
        description="Size of the job's shared memory volume, 0 for none. Empty: what the pipeline needs.",
    )
    timeout: int | None = Field(
        None,
        ge=1,
        title="Timeout (s)",
        description="How long a job may run before it is terminated. Empty: the pipeline's, else the default.",
    )
    runtime: Literal["process", "docker"] | None = Field(
        None,
        title="Runtime",
        description="Whether operators are local processes or Docker containers. Empty: what the platform is set to.",
    )
    tenant: str | None = Field(
        None,
        min_length=1,
        title="Tenant",
        description="Whose quota the job uses. Empty: the platform's default tenant.",
    )
    scheduling: Literal["operator", "gang"] | None = Field(
        None,
        title="Scheduling",
        description="Whether each operator gets its own resources, or the job all at once. Empty: the pipeline's.",
    )
    priority: Literal["immediate", "higher", "normal", "lower"] | None = Field(
        None,
        title="Priority",
        description="Empty: that of the work queue, and normal in any other queue.",
    )


def base_job_template() -> dict[str, Any]:
    """The work pool's template: the form as a JSON schema, and where its values go."""
    schema = PoolVariables.model_json_schema()
    variables = {"type": "object", "properties": schema["properties"], "required": []}
    configuration = {name: f"{{{{ {name} }}}}" for name in PoolVariables.model_fields}
    return {"job_configuration": configuration, "variables": variables}
