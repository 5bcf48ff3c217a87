"""The one settings object: environment `CLARA_FLOW_*`, then `clara-flow.toml`, then the defaults below.

Durations are seconds (`_s`), sizes MiB (`_mib`) or bytes (`_bytes`). Read once at the edge (`load_settings`), frozen
afterwards. The commented reference file is printed by this module:

    python -m clara_flow.settings > docs/reference/clara-flow.toml
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import logging
import os
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic_settings
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from clara_flow.errors import SettingsError

log = logging.getLogger(__name__)

PREFIX = "CLARA_FLOW_"
CONFIG_VARIABLE = "CLARA_FLOW_CONFIG"  # names the file, so it cannot stand in it
CONFIG_FILE = "clara-flow.toml"

Runtime = Literal["process", "docker"]
Port = Annotated[int, Field(ge=1, le=65535)]
DATABASE_SCHEMES = {"postgresql", "postgres"}


def default_data_dir() -> Path:
    """`$XDG_DATA_HOME/clara-flow`, by default `~/.local/share/clara-flow` (XDG base directory specification)."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "clara-flow"


class RegistryCredential(BaseModel):
    """Login of one image registry; a definition names it in `pull-secrets`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: str = Field(description="Host of the registry, as it stands in image names.", examples=["nvcr.io"])
    username: str = Field(description="Login name.", examples=["$oauthtoken"])
    password: SecretStr = Field(description="Password or access token.", examples=["secret"])


class Settings(BaseSettings):
    """Everything an administrator can set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        validate_default=True,
    )

    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Folder of everything that must survive: database, payloads, models, logs.",
        examples=["~/.local/share/clara-flow"],
    )

    host: str = Field("127.0.0.1", description="Address the services listen on. Loopback unless told otherwise.")
    prefect_port: Port = Field(4200, description="Prefect server: API and UI.")
    gateway_port: int = Field(8088, ge=0, le=65535, description="Gateway: REST, DICOMweb, health, metrics. 0: none.")
    dicom_port: int = Field(11112, ge=0, le=65535, description="DICOM storage SCP. 0: neither receive nor send DICOM.")
    grpc_port: Port = Field(50051, description="Platform API (gRPC).")

    database_url: SecretStr | None = Field(
        None,
        description="External PostgreSQL for our records. Unset: an embedded one.",
        examples=["postgresql://user:password@host:5432/clara_flow"],
    )
    prefect_database_url: SecretStr | None = Field(
        None,
        description="Database of our own Prefect server. Unset: `prefect` on the server of database_url.",
        examples=["postgresql://user:password@host:5432/prefect"],
    )
    prefect_api_url: str | None = Field(
        None,
        description="External Prefect server's API. Unset: a server of our own.",
        examples=["http://host:4200/api"],
    )
    postgres_bin_dir: Path | None = Field(
        None,
        description="Folder with initdb and postgres. Unset: a system installation's, else the wheel's.",
        examples=["/usr/lib/postgresql/15/bin"],
    )
    service_start_timeout_s: float = Field(
        120, gt=0, description="How long a service may take to answer; one that is silent for longer is restarted."
    )

    gateway_token: SecretStr | None = Field(
        None, description="Bearer token that the gateway asks for. Unset: it asks for none.", examples=["a long secret"]
    )
    dicom_maximum_associations: int = Field(
        25, ge=1, le=1000, description="Inbound DICOM associations at once, over all AE titles."
    )
    dicom_listeners: int | None = Field(
        None, ge=1, description="Processes that receive DICOM on one port. Unset: half the cores.", examples=[4]
    )
    dicom_verification: bool = Field(True, description="Whether C-ECHO is answered.")
    dicom_verification_transfer_syntaxes: tuple[str, ...] = Field(
        ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"),
        min_length=1,
        description="Transfer syntaxes accepted for C-ECHO.",
    )
    dicom_reject_unknown_sources: bool = Field(
        True, description="Whether associations of AE titles and hosts that are no registered source are rejected."
    )
    dicom_maximum_pdu_bytes: int = Field(
        131_072, ge=16_384, le=4_194_304, description="Largest PDU that the listener asks peers to send."
    )
    dicom_request_timeout_s: float = Field(
        10, gt=0, description="Time a peer has from the connection to a whole association request."
    )
    dicom_idle_timeout_s: float = Field(60, gt=0, description="Silence after which an association is aborted.")
    dicom_fsync: bool = Field(
        True, description="Whether an instance is on the disk before it is acknowledged. False risks it at power loss."
    )
    dicom_watermark_percent: int = Field(
        85, ge=1, le=100, description="Use of the spool's disk above which no instance is taken."
    )
    dicom_reserve_mib: int = Field(4_768, ge=0, description="Room that stays free on the spool's disk.")
    dicom_tls_port: int | None = Field(
        None, ge=1, le=65535, description="DICOM storage SCP with TLS. Unset: none.", examples=[2762]
    )
    dicom_tls_certificate: Path | None = Field(
        None, description="Certificate (PEM) of the DICOM services.", examples=["/etc/clara-flow/dicom.crt"]
    )
    dicom_tls_key: Path | None = Field(
        None, description="Its private key (PEM).", examples=["/etc/clara-flow/dicom.key"]
    )
    dicom_tls_authorities: Path | None = Field(
        None,
        description="Certificates (PEM) of the authorities that peers' certificates must come from.",
        examples=["/etc/clara-flow/authorities.pem"],
    )
    dicom_inbox: Path | None = Field(
        None,
        description="Watched folder: <inbox>/<AE title>/... is taken in like what is sent to that AE title.",
        examples=["/srv/dicom-inbox"],
    )
    dicom_metadata: bool = Field(False, description="Whether jobs made of DICOM carry attributes of it as metadata.")
    dicom_metadata_tags: tuple[str, ...] = Field(
        ("0008,0020", "0008,0060", "0008,1030", "0008,103E", "0020,000D"),
        description="Which attributes. Patients' names and numbers are for you to add.",
    )
    dicom_submit_retries: int = Field(3, ge=0, description="How often a group or an inference request is tried again.")
    dicom_submit_retry_delay_s: float = Field(180, ge=0, description="Pause before it is tried again.")
    dicom_scu_ae_title: str = Field(
        "ClaraSCU",
        min_length=1,
        max_length=16,
        description="Our calling AE title, and the agent of C-STORE deliveries.",
    )
    dicom_scu_maximum_associations: int = Field(
        8,
        ge=1,
        le=100,
        description="Deliveries at once over all destinations. One of them is kept for each destination, so that those "
        "that hang hold up no other; with more destinations than this, each has its one all the same.",
    )
    dicom_stow_agent: str = Field("DICOMweb", min_length=1, description="The agent of STOW-RS deliveries.")
    dicom_export_retries: int = Field(3, ge=0, description="How often a delivery that failed is tried again.")
    dicom_export_retry_delay_s: float = Field(
        5, ge=0, description="Pause before the first of these; it doubles from one to the next."
    )
    dicom_export_timeout_s: float = Field(60, gt=0, description="Time a destination has for each of its answers.")
    dicom_commitment_report_retention_s: float = Field(
        604_800,
        ge=0,
        description="How long a report of storage commitment is kept that its peer could not be told.",
    )
    results_lease_s: float = Field(
        1800, gt=0, description="Time after which a delivery task is offered again that nobody reported on."
    )
    results_maximum_retries: int | None = Field(
        None,
        ge=0,
        description="How often a delivery task of another agent is tried again. Unset: as often as its agent wants.",
        examples=[10],
    )
    results_retry_delay_s: float = Field(0, ge=0, description="Pause before it is offered to that agent again.")
    results_cleanup: bool = Field(
        True, description="Whether the files of a job are removed some time after its last delivery."
    )
    results_retention_s: float = Field(28_800, ge=0, description="That time.")
    results_trusted_networks: tuple[str, ...] = Field(
        (),
        description="Addresses and networks whose agents ask the results service (/api/tasks) without gateway_token: "
        "Clara's own can bring none.",
        examples=[["127.0.0.1", "10.1.2.0/24"]],
    )
    dicom_record_retention_s: float = Field(
        7_776_000,
        ge=0,
        description="How long records of received studies, deliveries and inference requests are kept once they are "
        "over and their files are gone, and procedure steps after a modality's last word; 0: for ever.",
    )

    runtime: Runtime = Field("process", description="How operators are launched by default.")
    docker_base_url: str | None = Field(
        None,
        description="Docker engine. Unset: DOCKER_HOST or its default.",
        examples=["unix:///var/run/docker.sock"],
    )
    image_pull_policy: Literal["always", "if-not-present", "never"] = Field(
        "if-not-present", description="When an operator's image is pulled."
    )
    registry_credentials: dict[str, RegistryCredential] = Field(
        default_factory=dict, description="Registry logins by the name that `pull-secrets` uses."
    )

    job_timeout_s: int = Field(600, gt=0, description="Time a job may run when neither it nor its definition says.")
    job_timeout_maximum_s: int = Field(1800, gt=0, description="Cap for every job timeout.")
    stop_grace_s: float = Field(
        15, ge=0, description="Between the request to stop an operator that ran out of time and its kill."
    )
    cancel_grace_s: float = Field(
        1, ge=0, description="Between the request to stop an operator of a cancelled job and its kill."
    )
    early_start: bool = Field(
        True, description="Whether operators that can prepare may start while those before them still run."
    )
    operator_cpu_default: int = Field(1, ge=0, description="Cores of an operator that asks for none.")
    operator_memory_default_mib: int = Field(1024, ge=1, description="Memory limit of an operator that asks for none.")
    operator_log_limit_mib: int = Field(
        64, ge=1, description="Size at which an operator's log file is cut (head and tail kept)."
    )
    storage_limit_percent: int = Field(
        80, ge=1, le=100, description="Use of the payload disk above which jobs are refused."
    )

    housekeeping_s: float = Field(
        60, gt=0, description="How often is looked for what crashes left behind, and for what is kept long enough."
    )
    payload_retention_s: float = Field(
        0, ge=0, description="How long the files of a completed job are kept after its end; 0: for ever."
    )
    failed_payload_retention_s: float = Field(
        1_209_600, ge=0, description="How long the files of a job that did not complete are kept; 0: for ever."
    )
    job_log_retention_s: float = Field(
        7_776_000, ge=0, description="How long operators' logs are kept once their job's files are gone; 0: for ever."
    )
    job_record_retention_s: float = Field(
        0, ge=0, description="How long the record of a job is kept once its files are gone; 0: for ever."
    )
    least_retention_s: float = Field(
        5_400, ge=0, description="Nothing of a job is removed sooner after its end, however full the disk is."
    )
    orphan_payload_s: float = Field(
        86_400, gt=0, description="Age at which files are removed that were taken in and never became a job."
    )
    service_log_limit_mib: int = Field(
        32, ge=1, description="Size at which a service's log file is begun anew; the last four are kept."
    )

    pool: str = Field("clara-flow", min_length=1, description="Prefect work pool that runs the jobs.")
    tenant: str = Field("default", min_length=1, description="Tenant of jobs whose caller and pipeline name none.")
    catalogs: tuple[Path, ...] = Field(
        (),
        description="Folders of operators beside the bundled ones: images.yaml, and a folder for each operator.",
        examples=[["/etc/clara-flow/operators"]],
    )
    node_name: str | None = Field(
        None, min_length=1, description="Name of this machine in the pool. Unset: its host name.", examples=["gpu-1"]
    )
    node_jobs: int | None = Field(
        None, ge=1, description="Jobs that this machine runs at once. Unset: twice its cores, at least 4.", examples=[8]
    )
    warm_runners: int = Field(2, ge=0, description="Runners kept ready beyond those that run a job.")
    runner_jobs: int = Field(200, ge=1, description="Jobs after which a runner is replaced by a new one.")
    runner_memory_limit_mib: int = Field(
        512, ge=128, description="Memory above which a runner is replaced after its job; at 4 times as much, at once."
    )
    lease_ttl_s: float = Field(30, gt=0, description="Time after which the leases of a silent machine end.")
    poll_s: float = Field(5, gt=0, description="How often is looked for work in case a notice was lost.")
    ageing_s: float = Field(
        900, gt=0, description="Wait after which jobs share a part of all turns, the longest waiting first."
    )
    database_patience_s: float = Field(
        60, ge=0, description="How long running jobs wait for a database that is away before they give up."
    )
    fastio_limit_mib: int | None = Field(
        None,
        ge=0,
        description="Shared memory that FastIO volumes of this machine may take. Unset: half of /dev/shm.",
        examples=[4096],
    )
    fastio_default_mib: int = Field(
        0, ge=0, description="FastIO volume of a job whose plan cannot tell how much it needs."
    )

    @field_validator("database_url", "prefect_database_url")
    @classmethod
    def _is_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and urlsplit(url.get_secret_value()).scheme.partition("+")[0] not in DATABASE_SCHEMES:
            raise ValueError("is no PostgreSQL address; write postgresql://user:password@host/database")
        return url

    @field_validator("results_trusted_networks")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for text in networks:
            try:
                ipaddress.ip_network(text)
            except ValueError:
                raise ValueError(f"{text!r} is no address and no network; write 10.1.2.3 or 10.1.2.0/24") from None
        return networks

    @field_validator("prefect_api_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).scheme not in {"http", "https"}:
            raise ValueError("is no address of an API; write http://host:4200/api")
        return url.rstrip("/") if url else url

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
        return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=read_config_file())


def config_file() -> Path | None:
    """The file of CLARA_FLOW_CONFIG, else `clara-flow.toml` in the current folder where there is one, else None."""
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named).expanduser()
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None


def read_config_file() -> dict[str, Any]:
    """What the settings file says; empty when there is none. Raises SettingsError when it cannot be read."""
    path = config_file()
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        cause = f" ({CONFIG_VARIABLE} names it)" if os.environ.get(CONFIG_VARIABLE) else ""
        raise SettingsError(f"the settings file {path}{cause} cannot be read: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise SettingsError(f"the settings file {path} is not valid TOML: {error}") from None


def load_settings(**overrides: Any) -> Settings:
    """Settings of this process; `overrides` (command-line options) win, None means "not given".

    Raises SettingsError naming each setting that cannot be used, and the variable or file that it came from. A variable
    CLARA_FLOW_* that is no setting is warned of only: it may be a newer version's.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(**given)
    except ValidationError as error:
        lines = [_explain(problem["loc"], problem["type"], problem["msg"], given) for problem in error.errors()]
        raise SettingsError("settings cannot be used: " + "; ".join(lines)) from None
    except pydantic_settings.SettingsError as error:  # it names the field in quotes
        wrong = [name for name in _variables() if f'"{_setting(name)}"' in str(error)]
        raise SettingsError(f"{', '.join(wrong)} cannot be used: it is not JSON") from None
    for name in _variables():
        if _setting(name) not in Settings.model_fields and name != CONFIG_VARIABLE:
            log.warning("%s is no setting and is ignored%s", name, _hint(_setting(name), PREFIX))
    return settings.model_copy(update={"data_dir": settings.data_dir.expanduser().absolute()})


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment that gives another process exactly these settings, passwords included."""
    environment = {CONFIG_VARIABLE: os.devnull}  # no file adds to them
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            environment[f"{PREFIX}{name.upper()}"] = value.get_secret_value()
        elif isinstance(value, dict | tuple):
            environment[f"{PREFIX}{name.upper()}"] = json.dumps(value, default=_plain)
        elif value is not None:
            environment[f"{PREFIX}{name.upper()}"] = str(value)
    return environment


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return dict(value) if isinstance(value, BaseModel) else str(value)


def _explain(loc: tuple[int | str, ...], kind: str, message: str, given: dict[str, Any]) -> str:
    """One problem as `setting (where it was set): what is wrong`. Values are not repeated: they may be secret."""
    setting, path = str(loc[0]), ".".join(map(str, loc))
    variables = [name for name in _variables() if _setting(name) == setting]
    if setting in given:
        source = f"option --{setting.replace('_', '-')}"
    else:
        source = ", ".join(variables) or str(config_file() or "default")
    if kind == "extra_forbidden" and len(loc) == 1:
        return f"{path} ({source}): there is no such setting{_hint(setting, '')}"
    return f"{path} ({source}): {message.removeprefix('Value error, ')}"


def _variables() -> list[str]:
    return sorted(name for name, value in os.environ.items() if name.upper().startswith(PREFIX) and value)


def _setting(variable: str) -> str:
    return variable.lower().removeprefix(PREFIX.lower()).partition("__")[0]


def _hint(setting: str, prefix: str) -> str:
    near = difflib.get_close_matches(setting, Settings.model_fields, n=3)
    names = [f"{prefix}{name.upper()}" if prefix else name for name in near]
    return f"; did you mean {' or '.join(names)}?" if names else ""


REFERENCE_HEAD = """\
# clara-flow.toml: every setting of clara-flow with its default. Made by `python -m clara_flow.settings`.
#
# Copy it, take away the `#` before the lines that you change. It is looked for in the current folder, or where the
# environment variable CLARA_FLOW_CONFIG points. Options of a command beat the environment, which beats this file,
# which beats the defaults. Units end the names: _s seconds, _mib MiB, _percent per cent. `~` is the home folder.
"""


def reference() -> str:
    """The commented TOML file of all settings: description, range, environment variable, default or an example."""
    schema = Settings.model_json_schema()
    plain, tables = [], []
    for name, field in schema["properties"].items():
        kind = next((choice for choice in field.get("anyOf", ()) if choice.get("type") != "null"), field)
        if "additionalProperties" in kind:  # a table comes last: what follows it would belong to it
            tables.append(_reference_table(name, field["description"], schema["$defs"]))
            continue
        has_default = field.get("default") is not None
        value = field["default"] if has_default else field["examples"][0]
        notes = [field["description"], _range(kind), "" if has_default or name == "data_dir" else "Example below."]
        lines = textwrap.wrap(" ".join(filter(None, notes)), 110)
        lines.append(f"Environment: {PREFIX}{name.upper()}")
        plain.append("\n".join([*(f"# {line}" for line in lines), f"#{name} = {json.dumps(value)}", ""]))
    return "\n".join([REFERENCE_HEAD, *plain, *tables])


def _reference_table(name: str, description: str, definitions: dict[str, Any]) -> str:
    fields = definitions[RegistryCredential.__name__]["properties"]
    variable = f"{PREFIX}{name.upper()}__MY_REGISTRY__"
    lines = [
        f"# {description} Each is a table of its own, here `my_registry`.",
        f"# Environment: {variable}USERNAME, ...",
    ]
    lines.append(f"#[{name}.my_registry]")
    lines += [f"#{key} = {json.dumps(field['examples'][0])}  # {field['description']}" for key, field in fields.items()]
    return "\n".join([*lines, ""])


def _range(kind: dict[str, Any]) -> str:
    """What values a setting takes, in words; "" where anything goes."""
    if "enum" in kind:
        return f"One of {', '.join(kind['enum'])}."
    if "minimum" in kind and "maximum" in kind:
        return f"{kind['minimum']} to {kind['maximum']}."
    if "minimum" in kind:
        return f"At least {kind['minimum']}."
    return f"More than {kind['exclusiveMinimum']}." if "exclusiveMinimum" in kind else ""


if __name__ == "__main__":
    sys.stdout.write(reference())
