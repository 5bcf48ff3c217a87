"""What a row of the DICOM configuration must be like, checked before it is stored; all faults are told together.

A `check_` function brings texts into their one form (spaces around them go) and returns the row. It raises InputError.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from clara_flow.errors import InputError, SettingsError
from clara_flow.records.dicom_lines import Late
from clara_flow.records.dicom_models import AeTitle, Destination, DestinationKind, SourceNode
from clara_flow.services.dicom.deidentify import PROFILES

AE_TITLE_LENGTH = 16  # VR AE, PS3.5 section 6.2
NAME_LENGTH = 64
MOST_ASSOCIATIONS = 1000
MOST_CONCURRENCY = 100
MOST_TEXT = 256

AE_CHARACTERS = re.compile(r"[\x20-\x5b\x5d-\x7e]+")  # ISO IR-6 without backslash and control characters
NAME_CHARACTERS = re.compile(r"(?!\.)[\x20-\x2e\x30-\x5b\x5d-\x7e]+")  # those of AE titles, fit for addresses
HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
UID_LENGTH = 64
CREDENTIALS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")

SALT_BYTES = 16


class _Faults:
    """Collects what is wrong with a row."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._sentences: list[str] = []

    def see(self, check: Callable[..., str], *arguments: object) -> str:
        """What the check makes of it; "" when it refuses."""
        try:
            return check(*arguments)
        except (InputError, SettingsError) as error:  # the latter is what processors say of their settings
            self._sentences.append(str(error))
            return ""

    def unless(self, holds: bool, sentence: str) -> None:
        """A fault where it does not hold."""
        if not holds:
            self._sentences.append(sentence)

    def tell(self) -> None:
        """Raises InputError when there was any."""
        if self._sentences:
            raise InputError(f"{self._what} cannot be used: {'; '.join(self._sentences)}", faults=self._sentences)


def check_aetitle(row: AeTitle) -> AeTitle:
    """One of our own AE titles: its names, its processor and that one's settings, its SOP classes."""
    faults = _Faults(f"AE title {row.ae_title.strip()!r}")
    row.ae_title = faults.see(ae_title, row.ae_title)
    row.name = faults.see(name, row.name.strip() or row.ae_title) if row.name.strip() or row.ae_title else ""
    row.ignored_sop_classes = [faults.see(uid, text) for text in row.ignored_sop_classes]
    row.processor_settings = {key.strip(): value for key, value in row.processor_settings.items()}
    row.processor = faults.see(_processor, row.processor, row.ae_title, row.processor_settings)
    row.deidentify = faults.see(profile, row.deidentify)
    faults.unless(
        not (row.deidentify or row.ignored_sop_classes) or not _is_for_retrieval(row),
        f"the processor {row.processor!r} gives inference requests what comes as it comes: it has neither "
        "de-identification nor ignored SOP classes",
    )
    faults.unless(
        not row.deidentify or not _runs_again(row),
        "what was de-identified is kept as that alone, and cannot be run again together with what comes late: "
        "`late` is `new` or `ignore` where there is de-identification",
    )
    faults.tell()
    return row


def check_source(row: SourceNode) -> SourceNode:
    """Who may send: AE title, host, limit, identity."""
    faults = _Faults(f"source {row.ae_title.strip()!r}")
    row.ae_title = faults.see(ae_title, row.ae_title)
    row.host = faults.see(host_or_network, row.host)
    limit = row.maximum_associations
    faults.unless(
        limit is None or 1 <= limit <= MOST_ASSOCIATIONS,
        f"the limit of associations is 1 to {MOST_ASSOCIATIONS}, not {limit}",
    )
    faults.unless(len(row.user_name) <= MOST_TEXT, f"the user name has more than {MOST_TEXT} characters")
    faults.unless(bool(row.user_name) or not row.user_secret, "a password needs a user name beside it")
    faults.tell()
    return row


def check_destination(row: Destination) -> Destination:
    """Where results may go: over DIMSE an AE title, host and port; over STOW-RS a URL."""
    faults = _Faults(f"destination {row.name.strip()!r}")
    row.name = faults.see(name, row.name)
    if row.kind is DestinationKind.DIMSE:
        row.ae_title = faults.see(ae_title, row.ae_title)
        row.host = faults.see(host, row.host)
        faults.unless(row.port is not None and 1 <= row.port <= 65535, f"a port is 1 to 65535, not {row.port}")
        faults.unless(not row.url, "a URL is for STOW-RS alone; leave it out, or AE title, host and port")
    else:
        row.url = faults.see(stow_url, row.url)
        faults.unless(not (row.ae_title or row.host or row.port), "STOW-RS has a URL and no AE title, host or port")
        faults.unless(not row.storage_commitment, "storage commitment is for DIMSE: STOW-RS has none")
    if row.calling_ae:
        row.calling_ae = faults.see(ae_title, row.calling_ae)
    faults.unless(
        1 <= row.concurrency <= MOST_CONCURRENCY, f"concurrency is 1 to {MOST_CONCURRENCY}, not {row.concurrency}"
    )
    row.deidentify = faults.see(profile, row.deidentify)
    if row.credentials:
        row.credentials = faults.see(credentials_name, row.credentials)
    faults.tell()
    return row


def ae_title(text: str) -> str:
    """An AE title without its padding (VR AE, PS3.5 section 6.2). Raises InputError."""
    stripped = text.strip(" ")
    if not stripped:
        raise InputError("an AE title has 1 to 16 characters that are not all spaces")
    if len(stripped) > AE_TITLE_LENGTH:
        raise InputError(f"an AE title has at most {AE_TITLE_LENGTH} characters; {stripped!r} has {len(stripped)}")
    if not AE_CHARACTERS.fullmatch(stripped):
        raise InputError(f"an AE title has ASCII characters without backslash and control characters, not {stripped!r}")
    return stripped


def name(text: str) -> str:
    """A name of ours. Raises InputError."""
    stripped = text.strip()
    if len(stripped) > NAME_LENGTH or not NAME_CHARACTERS.fullmatch(stripped):
        raise InputError(
            f"a name has 1 to {NAME_LENGTH} ASCII characters without slash and backslash, and does not begin with a "
            f"dot; found {stripped!r}"
        )
    return stripped


def host(text: str) -> str:
    """An IP address or a host name. Raises InputError."""
    stripped = text.strip()
    try:
        return str(ipaddress.ip_address(stripped))
    except ValueError:
        pass
    labels = stripped.removesuffix(".").split(".")
    is_name = len(stripped) <= 253 and all(map(HOST_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
    if not is_name:
        raise InputError(f"a host is an IP address or a host name, not {stripped!r}")
    return stripped


def host_or_network(text: str) -> str:
    """An IP address, a network (10.1.0.0/16) or a host name. Raises InputError."""
    stripped = text.strip()
    if "/" not in stripped:
        return host(stripped)
    try:
        return str(ipaddress.ip_network(stripped))
    except ValueError as error:
        raise InputError(f"a network is written as 10.1.0.0/16 or fd00::/8: {error}") from None


def stow_url(text: str) -> str:
    """The address of a DICOMweb service, without the / at its end. Raises InputError."""
    stripped = text.strip().rstrip("/")
    try:
        parts = urlsplit(stripped)
        fits = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or len(stripped) > 2000 or not stripped.isprintable() or " " in stripped:
        raise InputError("a STOW-RS address is the DICOMweb root, such as https://pacs:8042/dicom-web")
    if parts.username or parts.password:
        raise InputError("no user or password stands in a URL: put them where `credentials` says")
    if parts.query or parts.fragment:
        raise InputError("a DICOMweb root ends before ? and #")
    return stripped


def uid(text: str) -> str:
    """A UID (PS3.5 section 9.1). Raises InputError."""
    stripped = text.strip()
    if len(stripped) > UID_LENGTH or not UID.fullmatch(stripped):
        raise InputError(f"{stripped!r} is no UID")
    return stripped


def profile(text: str) -> str:
    """A de-identification profile, or "". Raises InputError that lists them."""
    stripped = text.strip()
    if stripped and stripped not in PROFILES:
        raise InputError(f"there is no de-identification profile {stripped!r}; there are {', '.join(PROFILES)}")
    return stripped


def credentials_name(text: str) -> str:
    """The name of a Prefect block or of a variable of the environment. Raises InputError."""
    stripped = text.strip()
    if not CREDENTIALS.fullmatch(stripped):
        raise InputError(
            "`credentials` is the name of a Prefect block or environment variable that holds the secret, "
            "not the secret itself"
        )
    return stripped


def hashed_secret(password: str) -> str:
    """A password as sources keep it: `salt$sha256`, both in hex; SHA-256 of the salt's digits and the password."""
    return _salted(secrets.token_hex(SALT_BYTES), password)


def is_secret(password: str, secret: str) -> bool:
    """Whether `secret` is what `hashed_secret` made of this password."""
    return hmac.compare_digest(_salted(secret.partition("$")[0], password), secret)


def _salted(salt: str, password: str) -> str:
    return f"{salt}${hashlib.sha256((salt + password).encode()).hexdigest()}"


def _processor(name: str, ae_title: str, settings: Mapping[str, str]) -> str:
    from clara_flow.services.dicom.grouping import processors  # plug-ins: imported when they are asked

    processors.validated(ae_title, name.strip(), settings)
    return name.strip()


def _runs_again(row: AeTitle) -> bool:
    from clara_flow.services.dicom.grouping import processors

    try:
        return processors.validated(row.ae_title, row.processor, row.processor_settings).late is Late.RERUN
    except SettingsError:  # which was told
        return False


def _is_for_retrieval(row: AeTitle) -> bool:
    from clara_flow.services.dicom.grouping.retrieve import RetrieveProcessor

    return row.processor == RetrieveProcessor.name
