"""The one settings object: environment `CLARA_FLOW_*`, then `clara-flow.toml`, then the defaults below.

Durations are seconds (`_s`), sizes MiB (`_mib`) or bytes (`_bytes`). Read once at the edge (`load_settings`), frozen
afterwards. The commented reference file `docs/reference/clara-flow.toml` is generated from this class.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from clara_flow.errors import SettingsError

Runtime = Literal["process", "docker"]
Port = Annotated[int, Field(ge=1, le=65535)]


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/clara-flow`, by default `~/.local/share/clara-flow` (XDG base directory specification)."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "clara-flow"


class RegistryCredential(BaseModel):
    """Login of one image registry; a definition names it in `pull-secrets`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: str = Field(description="Host of the registry, as it stands in image names, e.g. nvcr.io.")
    username: str
    password: SecretStr


class Settings(BaseSettings):
    """Everything an administrator can set."""

    model_config = SettingsConfigDict(
        env_prefix="CLARA_FLOW_", env_nested_delimiter="__", frozen=True, extra="forbid", validate_default=True
    )

    data_dir: Path = Field(
        default_factory=default_data_dir, description="Everything that must survive: database, payloads, models, logs."
    )

    host: str = Field("127.0.0.1", description="Address the services listen on. Loopback unless told otherwise.")
    prefect_port: Port = Field(4200, description="Prefect server: API and UI.")
    gateway_port: Port = Field(8088, description="Gateway: REST, viewer, DICOMweb.")
    dicom_port: Port = Field(11112, description="DICOM storage SCP.")
    grpc_port: Port = Field(50051, description="Platform API (gRPC).")

    database_url: SecretStr | None = Field(
        None, description="External PostgreSQL, postgresql://user:password@host/database. Unset: an embedded one."
    )
    prefect_database_url: SecretStr | None = Field(
        None, description="Database of our own Prefect server. Unset: `prefect` on the server of database_url."
    )
    prefect_api_url: str | None = Field(None, description="External Prefect API, http://host:4200/api. Unset: our own.")
    postgres_bin_dir: Path | None = Field(
        None, description="Folder with initdb and postgres. Unset: a system installation's, else the wheel's."
    )
    service_start_timeout_s: float = Field(120, gt=0, description="How long a service may take to become healthy.")

    runtime: Runtime = Field("process", description="How operators are launched by default.")
    docker_base_url: str | None = Field(
        None, description="Docker engine, unix:///... Unset: DOCKER_HOST or its default."
    )
    image_pull_policy: Literal["always", "if-not-present", "never"] = Field(
        "if-not-present", description="When an operator's image is pulled."
    )
    registry_credentials: dict[str, RegistryCredential] = Field(
        default_factory=dict, description="Registry logins by the name that `pull-secrets` uses."
    )

    job_timeout_s: int = Field(600, gt=0, description="Time a job may run when neither it nor its definition says.")
    job_timeout_maximum_s: int = Field(1800, gt=0, description="Cap for every job timeout.")
    stop_grace_s: float = Field(15, ge=0, description="Between the request to stop an operator and its kill.")
    operator_cpu_default: int = Field(1, ge=0, description="Cores of an operator that asks for none.")
    operator_memory_default_mib: int = Field(1024, ge=1, description="Memory limit of an operator that asks for none.")
    operator_log_limit_mib: int = Field(
        64, ge=1, description="Size at which an operator's log file is cut (head and tail kept)."
    )
    storage_limit_percent: int = Field(
        80, ge=1, le=100, description="Use of the payload disk above which jobs are refused."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments beat the environment beats the file; there is no .env file."""
        del dotenv_settings, file_secret_settings
        toml = os.environ.get("CLARA_FLOW_CONFIG", "clara-flow.toml")
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=toml)


def load_settings(**overrides: Any) -> Settings:
    """Settings of this process; `overrides` (command-line options) win, None means "not given".

    Raises SettingsError naming each setting that cannot be used.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, problem['loc']))} (CLARA_FLOW_{str(problem['loc'][0]).upper()}): {problem['msg']}"
            for problem in error.errors()
        ]
        raise SettingsError("settings cannot be used: " + "; ".join(lines)) from None
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})
