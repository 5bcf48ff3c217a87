"""Bodies of the configuration's REST: Clara's fields in camelCase, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic.alias_generators import to_camel

from clara_flow.records.dicom_models import AeTitle, Destination, DestinationKind, SourceNode
from clara_flow.services.dicom.config_check import hashed_secret

ANSWERED = frozenset({"created", "updated", "block", "haspassword"})  # may be sent back with what was changed


class Body(BaseModel):
    """What may be sent; names of fields in any case, as Clara takes them.

    A field that there is not is refused, so that a slip of the pen is no silent default.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _in_camel_case_each(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        known = {to_camel(name).lower(): to_camel(name) for name in cls.model_fields}
        named = {str(key): value for key, value in content.items() if str(key).lower() not in ANSWERED}
        return {known.get(key.lower().replace("_", ""), key): value for key, value in named.items()}


class AeTitleBody(Body):
    """One of our AE titles. `name` is its AE title where none is given."""

    name: str = ""
    ae_title: str
    overwrite_same_instance: bool = False
    ignored_sop_classes: list[str] = []
    processor: str = "ae-title"
    processor_settings: dict[str, str] = {}
    require_release: bool = False
    deidentify: str = ""

    def row(self) -> AeTitle:
        """Not checked yet."""
        return AeTitle(**self.model_dump())


class SourceBody(Body):
    """Who may send. `password` is kept as a salted hash and never shown."""

    ae_title: str
    host_ip: str
    maximum_associations: int | None = None
    user_name: str = ""
    password: SecretStr | None = Field(None, max_length=1000)

    def row(self) -> SourceNode:
        """Not checked yet."""
        secret = self.password.get_secret_value() if self.password else ""
        return SourceNode(
            ae_title=self.ae_title,
            host=self.host_ip,
            maximum_associations=self.maximum_associations,
            user_name=self.user_name,
            user_secret=hashed_secret(secret) if secret else "",
        )


class DestinationBody(Body):
    """Where results may go: AE title, host and port, or the URL of a DICOMweb service."""

    name: str
    ae_title: str = ""
    host_ip: str = ""
    port: int | None = None
    url: str = ""
    tls: bool = False
    calling_ae: str = ""
    concurrency: int = 2
    storage_commitment: bool = False
    deidentify: str = ""
    credentials: str = ""
    paused: bool = False

    def row(self) -> Destination:
        """Not checked yet."""
        kind = DestinationKind.STOW if self.url else DestinationKind.DIMSE
        facts = self.model_dump(exclude={"host_ip"})
        return Destination(kind=kind, host=self.host_ip, **facts)


def shown_aetitle(row: AeTitle) -> dict[str, Any]:
    """As it is answered."""
    return _in_camel_case(row.model_dump(mode="json", exclude={"draining"}))


def shown_source(row: SourceNode) -> dict[str, Any]:
    """As it is answered: without its secret."""
    facts = row.model_dump(mode="json", exclude={"host", "user_secret", "block_updated"})
    return _in_camel_case({**facts, "host_ip": row.host, "has_password": bool(row.user_secret)})


def shown_destination(row: Destination) -> dict[str, Any]:
    """As it is answered."""
    facts = row.model_dump(mode="json", exclude={"host", "kind", "block_updated"})
    return _in_camel_case({**facts, "host_ip": row.host})


def merged(content: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Merge Patch (RFC 7386): null takes a member away.

    >>> merged({"a": 1, "b": {"c": 2, "d": 3}}, {"a": None, "b": {"c": 4}})
    {'b': {'c': 4, 'd': 3}}
    """
    result = dict(content)
    for key, value in patch.items():
        before = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            result[key] = merged(before if isinstance(before, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def _in_camel_case(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in facts.items()}
