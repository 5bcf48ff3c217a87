"""What a client of DICOMweb takes (PS3.18 8.7.4, 8.7.5): read from its Accept header."""

from __future__ import annotations

import re
from collections.abc import Collection

from clara_flow.services.dicom.web_multipart import content_type
from clara_flow.services.problems import NotAcceptable

RANGE = re.compile(r'(?:[^,"]|"[^"]*")+')
JSON_RANGES = {"*/*", "application/*", "application/dicom+json", "application/json"}


def ranges(accept: str) -> list[tuple[str, dict[str, str]]]:
    """Media ranges with their parameters; `*/*` where nothing is said."""
    return [content_type(part.strip()) for part in RANGE.findall(accept) if part.strip()] or [("*/*", {})]


def require_json(accept: str) -> None:
    """Raises NotAcceptable when DICOM JSON is not taken."""
    if not any(media_range in JSON_RANGES for media_range, _ in ranges(accept)):
        raise NotAcceptable("only application/dicom+json is answered here")


def accepted_dicom(accept: str, syntaxes: Collection[str], count: int) -> bool:
    """Whether files are sent bare instead of in parts: one alone may be, where only that is taken.

    syntaxes    of the files; they are sent as they are.

    Raises NotAcceptable when DICOM files, or files of these syntaxes, are not taken.
    """
    takes_dicom = False
    for media_range, parameters in ranges(accept):
        is_multipart = media_range in {"*/*", "multipart/*", "multipart/related"}
        if is_multipart and parameters.get("type", "application/dicom") not in {"application/dicom", "*/*"}:
            continue
        if not is_multipart and not (media_range in {"application/dicom", "application/*"} and count == 1):
            continue
        takes_dicom = True
        syntax = parameters.get("transfer-syntax", "*")
        if syntax == "*" or set(syntaxes) == {syntax}:
            return not is_multipart
    if takes_dicom:
        raise NotAcceptable(
            "files are sent in the transfer syntax that they came in, and another one is asked for: "
            "ask for transfer-syntax=*"
        )
    raise NotAcceptable('only multipart/related; type="application/dicom" is answered here')
