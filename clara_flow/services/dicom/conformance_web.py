"""The part of the conformance statement about DICOMweb (PS3.18), as origin server and as user agent."""

from __future__ import annotations

from clara_flow.services.dicom.conformance_facts import Row
from clara_flow.services.dicom.export.stow import FILES_PER_REQUEST
from clara_flow.services.dicom.web_query import ATTRIBUTES, COUNTED, LARGEST_LIMIT
from clara_flow.services.dicom.web_routes import LARGEST_INLINE_BYTES
from clara_flow.services.dicom.web_store import RETRY_AFTER_S

STUDY, SERIES = "/studies/{study}", "/studies/{study}/series/{series}"
INSTANCE = f"{SERIES}/instances/{{instance}}"
PREFIXES = ("/dicom-web", "/dicom-web/{ae}")  # all of it, and what came in through one AE title
# Below the prefixes: what is stored for, searched and retrieved.
STORED = ("/studies", STUDY)
SEARCHED = ("/studies", "/series", "/instances", f"{STUDY}/series", f"{STUDY}/instances", f"{SERIES}/instances")
RETRIEVED = (STUDY, SERIES, INSTANCE)
DESCRIBED = tuple(f"{path}/metadata" for path in RETRIEVED)

WEB = """#### 4.2.4 GATEWAY

Origin server below `/dicom-web`. `/dicom-web/<AE title>` is the same, confined to what came in through that AE title
and to what jobs made of it; STOW-RS needs it, since an AE title says what becomes of instances. With the setting
`gateway_token` every request needs `Authorization: Bearer <token>`.

| Transaction | Method | Resources | Media types |
|---|---|---|---|
| Store (STOW-RS) | POST | {stored} | takes {multipart}, answers {json} |
| Search (QIDO-RS) | GET | {searched} | {json} |
| Retrieve (WADO-RS) | GET | {retrieved} | {multipart}; `application/dicom` for one instance |
| Retrieve metadata (WADO-RS) | GET | {described} | {json} |

Rendered resources, frames, bulk data, thumbnails, worklists and capabilities are not served.

##### 4.2.4.1 Store

SOP classes and transfer syntaxes are those of STORAGE-SCP (4.2.1), and an instance gets the same status, as its
Failure Reason. What is named in the Referenced SOP Sequence is on the disk.

| Status | When |
|---|---|
| 200 | all were stored, or ignored as the AE title says |
| 202 | some were |
| 409 | none was |
| 400 | the body is no multipart body, or is cut off: parts that were whole by then are kept |
| 404 | there is no such AE title, or none is named |
| 415 | the body is of another media type |
| 503 | the disk has too little room; `Retry-After: {retry_after}` |

##### 4.2.4.2 Search

Single values, lists of UIDs, wildcards, ranges of dates and times, and universal matching; names of persons without
regard to case; no sequences. `includefield` (also `all`), `limit` ({limit} at most) and `offset` are supported,
`fuzzymatching` is answered literally, with a warning. Any attribute of the headers can be asked for.

| Level | Attributes of each result, beside those of the levels above |
|---|---|
{attributes}

Counted: {counted}. Instance Availability is ONLINE. 200 with results, 204 without, 400 for a query that cannot be
understood, 406 where DICOM JSON is not taken.

##### 4.2.4.3 Retrieve

Files are sent in the transfer syntax that they have: ask for `transfer-syntax=*`, since another one is answered with
406. Metadata leave out binary values of more than {inline} bytes. 404 for what is not here, or not any more.

##### 4.2.4.4 As a user agent

EXPORT-SCU stores by STOW-RS, {batch} instances a request, as they are; 200, 202 and 409 are read instance by
instance. QUERY-SCU searches studies by Patient ID and Accession Number (QIDO-RS) and retrieves studies, series and
instances (WADO-RS, `transfer-syntax=*`) for inference requests. Both authenticate as they are told: Basic or Bearer.
"""


def web() -> list[str]:
    """Its text."""
    return [
        WEB.format(
            stored=_paths(STORED),
            searched=_paths(SEARCHED),
            retrieved=_paths(RETRIEVED),
            described=_paths(DESCRIBED),
            multipart='`multipart/related; type="application/dicom"`',
            json="`application/dicom+json`",
            retry_after=RETRY_AFTER_S,
            limit=LARGEST_LIMIT,
            attributes="\n".join(f"| {level} | {', '.join(names)} |" for level, names in ATTRIBUTES.items()),
            counted=", ".join(COUNTED),
            inline=LARGEST_INLINE_BYTES,
            batch=FILES_PER_REQUEST,
        )
    ]


def resources() -> set[Row]:
    """Method and path of everything that this page tells of, for the test that holds it beside the routes."""
    reads = (*SEARCHED, *RETRIEVED, *DESCRIBED)
    paths = {("GET", f"{prefix}{path}") for prefix in PREFIXES for path in reads}
    return paths | {("POST", f"{prefix}{path}") for prefix in PREFIXES for path in STORED}


def _paths(paths: tuple[str, ...]) -> str:
    return ", ".join(f"`{path}`" for path in paths)
