"""A peer with what it takes to be let in, kept by Prefect, which encrypts secrets.

A destination names such a block in `credentials`; the adapter asks for it when it sends.
"""

from __future__ import annotations

from typing import Any

from prefect.blocks.core import Block
from pydantic import Field, SecretStr, model_validator


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
