"""A peer with what it takes to be let in, kept by Prefect, which encrypts secrets.

A destination names such a block in `credentials`; the adapter asks for it when it sends.
"""

from __future__ import annotations

from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import Field, SecretStr, model_validator

from clara_flow.errors import ServiceError


class DicomNode(Block):
    """A DICOM node: who it is, and the secrets to be let in by it: a user and a password, or a bearer token."""

    _block_type_name = "DICOM node"
    _block_type_slug = "dicom-node"
    _description = "A PACS or another DICOM peer, with the login for its DICOMweb services."

    ae_title: str = Field("", max_length=16, description="Its AE title, for people.")
    host: str = Field("", description="Its host, for people.")
    port: int | None = Field(None, ge=1, le=65535, description="Its port, for people.")
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

    def secret(self) -> str:
        """`user:password` or a bearer token, as `credentials` of a destination are read; "" is neither."""
        if self.token is not None:
            return self.token.get_secret_value()
        if not self.username:
            return ""
        return f"{self.username}:{self.password.get_secret_value() if self.password else ''}"


def find_secret(name: str, api_url: str) -> str:
    """The secret of the block of that name, kept by the Prefect server at `api_url`; "" when there is no such block.

    Not inside an event loop. Raises ServiceError when the server does not answer or the block cannot be read.
    """
    try:
        with temporary_settings({PREFECT_API_URL: api_url}):
            node = DicomNode.load(name)
    except ValueError as error:  # Prefect's word for one that there is not, and for one of another shape
        if "Unable to find block document" in str(error):
            return ""
        raise ServiceError("Prefect", f"its block {name!r} is no DICOM node", remedy="Make it anew.") from None
    except (httpx.HTTPError, PrefectException) as error:
        reason = type(error).__name__
        raise ServiceError(
            "Prefect", f"it did not give the block {name!r}: {reason}", remedy="Is it running?"
        ) from None
    assert isinstance(node, DicomNode)  # noqa: S101  for the type checker
    return node.secret()
