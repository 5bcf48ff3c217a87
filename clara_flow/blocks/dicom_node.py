"""A peer as a block of Prefect, which encrypts secrets: where results go, who may send, a login.

The adapter makes a destination, a source or both of a block that says so; any destination may name one in
`credentials`, whose login is asked for when something is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from pydantic import Field, SecretStr, ValidationError, model_validator

from clara_flow.errors import ServiceError

ANSWER_S = 10.0


class DicomNode(Block):
    """A DICOM node: who it is, what it may do, and how to be let in by it: a user and a password, or a bearer token."""

    _block_type_name = "DICOM node"
    _block_type_slug = "dicom-node"
    _description = "A PACS or another DICOM peer: a destination of results, a source of studies, a login."

    is_destination: bool = Field(False, description="Whether it is a destination; pipelines call it as this block.")
    is_source: bool = Field(False, description="Whether it may send: from its host, calling itself by its AE title.")
    ae_title: str = Field("", max_length=16, description="Its AE title.")
    host: str = Field("", description="Its IP address or host name; of a mere source also a network (10.1.0.0/16).")
    port: int | None = Field(None, ge=1, le=65535, description="The port that it takes results at.")
    url: str = Field("", description="Its DICOMweb root: results go there by STOW-RS, not by C-STORE.")
    tls: bool = Field(False, description="Whether C-STORE goes by TLS.")
    calling_ae: str = Field("", max_length=16, description="How we call ourselves there, if not as everywhere.")
    concurrency: int = Field(2, ge=1, le=100, description="Deliveries at once.")
    storage_commitment: bool = Field(False, description="Whether it must confirm what it keeps (C-STORE).")
    deidentify: str = Field("", description="basic or basic-keep-dates: results are de-identified.")
    username: str = Field("", description="Login name at its DICOMweb services.")
    password: SecretStr | None = Field(None, description="Password of that login.")
    token: SecretStr | None = Field(None, description="Bearer token, instead of login name and password.")

    @model_validator(mode="after")
    def _is_one_way_in(self) -> Any:
        if self.token is not None and (self.username or self.password is not None):
            raise ValueError("give a bearer token, or a user name and password; not both")
        if self.password is not None and not self.username:
            raise ValueError("a password needs a user name")
        return self

    @property
    def has_secret(self) -> bool:
        """Whether there is a login or a token."""
        return self.token is not None or bool(self.username)

    def secret(self) -> str:
        """`user:password` or a bearer token, as `credentials` of a destination are read; "" is neither."""
        if self.token is not None:
            return self.token.get_secret_value()
        if not self.username:
            return ""
        return f"{self.username}:{self.password.get_secret_value() if self.password else ''}"


@dataclass(frozen=True, slots=True)
class SavedNode:
    """A block as Prefect keeps it, saved last at `updated` (UTC). fault: why it is no DICOM node, where `node` is None.

    Secrets in `node` are stars, for nobody asked for them.
    """

    name: str
    updated: datetime
    node: DicomNode | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class SavedNodes:
    """All blocks of the type, by name. since: when this database of Prefect learned of the type (UTC)."""

    since: datetime
    nodes: tuple[SavedNode, ...]


def saved_nodes(api_url: str) -> SavedNodes | None:
    """What the Prefect server at `api_url` keeps; None where it does not know the type (yet).

    Raises ServiceError when the server does not answer within ANSWER_S; whoever looks again and again tries again.
    """
    with (
        _asking("its blocks", api_url),
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client({"timeout": ANSWER_S}, sync_client=True) as client,
    ):
        try:
            kind = client.read_block_type_by_slug(DicomNode.get_block_type_slug())
        except ObjectNotFound:
            return None
        documents = client.read_block_documents_by_type(kind.slug, include_secrets=False)
        if kind.created is None:
            raise ServiceError("Prefect", "it did not tell when it learned of DICOM nodes", remedy="Is it a Prefect 3?")
        found = [
            _saved(document.name, document.updated, document.data)
            for document in documents
            if document.name is not None and document.updated is not None
        ]
        return SavedNodes(kind.created, tuple(sorted(found, key=lambda one: one.name)))


def _saved(name: str, updated: datetime, data: dict[str, Any]) -> SavedNode:
    """The UI checks each field by itself alone, so that what it saves may be none."""
    try:
        return SavedNode(name, updated, DicomNode(**data))
    except ValidationError as error:  # its text would quote values
        faults = (": ".join([*map(str, fault["loc"]), str(fault["msg"])]) for fault in error.errors())
        return SavedNode(name, updated, None, "; ".join(faults))


def find_secret(name: str, api_url: str) -> str:
    """The secret of the block of that name, kept by the Prefect server at `api_url`; "" when there is no such block.

    Not inside an event loop. Raises ServiceError when the server does not answer or the block cannot be read.
    """
    with _asking(f"the block {name!r}", api_url):
        try:
            node = DicomNode.load(name)
        except ValueError as error:  # Prefect's word for one that there is not, and for one of another shape
            if "Unable to find block document" in str(error):
                return ""
            raise ServiceError("Prefect", f"its block {name!r} is no DICOM node", remedy="Make it anew.") from None
    assert isinstance(node, DicomNode)  # noqa: S101  for the type checker
    return node.secret()


@contextmanager
def _asking(what: str, api_url: str) -> Iterator[None]:
    """Ask that server inside; what keeps it from answering is a ServiceError."""
    try:
        with temporary_settings({PREFECT_API_URL: api_url}):
            yield
    except (httpx.HTTPError, PrefectException) as error:
        reason = type(error).__name__
        raise ServiceError("Prefect", f"it did not give {what}: {reason}", remedy="Is it running?") from None
