"""The secret that a destination's `credentials` names: a variable of the environment, or a Prefect block."""

from __future__ import annotations

import base64
import os

from clara_flow.errors import SettingsError
from clara_flow.services import prefect_server
from clara_flow.settings import Settings


def secret_of(settings: Settings, name: str) -> str:
    """`user:password` or a bearer token; "" for the name "". The environment goes before a block of the same name.

    Raises SettingsError when neither is there, ServiceError when Prefect does not answer.
    """
    if not name:
        return ""
    secret = os.environ.get(name, "").strip()
    if secret:
        return secret
    from clara_flow.blocks.dicom_node import find_secret  # it takes Prefect, which is slow to import

    secret = find_secret(name, prefect_server.api_url(settings))
    if not secret:
        raise SettingsError(
            f"the credentials {name!r} are neither a variable of this process's environment nor a Prefect block of the "
            "type DICOM node with a login or a token: set one of them",
            name=name,
        )
    return secret


def authorization(secret: str) -> dict[str, str]:
    """The header of HTTP requests: Basic for `user:password`, Bearer for anything else, none for "".

    >>> authorization("token")
    {'Authorization': 'Bearer token'}
    """
    if not secret:
        return {}
    if ":" in secret:
        return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
    return {"Authorization": f"Bearer {secret}"}
