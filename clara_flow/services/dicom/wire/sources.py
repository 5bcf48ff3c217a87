"""Who may send: sources by address, network or host name, and by what their user identity says."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterable

from clara_flow.services.dicom.listener_config import CommitterRule, SourceRule
from clara_flow.services.dicom.wire.negotiation import UserIdentity

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

KEEP_S = 60.0  # an answer of the name service
RETRY_S = 5.0  # after it gave none
USER_NAME, USER_NAME_AND_PASSCODE = 1, 2  # kinds of identity (PS3.7 Annex D.3.3.7)


def parse_address(text: str) -> Address | None:
    """An IP address, an IPv4 one also where it is written as an IPv6 one; None: it is something else."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])  # without the zone
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def look_up(name: str) -> frozenset[Address]:
    """The addresses of a host. Raises OSError."""
    found = {parse_address(str(entry[4][0])) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    return frozenset(address for address in found if address is not None)


class HostNames:
    """What the name service says, kept for a while; its last answer goes on when it gives none. For any thread."""

    def __init__(
        self,
        look_up: Callable[[str], frozenset[Address]] = look_up,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up = look_up
        self._clock = clock
        self._mutex = threading.Lock()
        self._known: dict[str, tuple[float, frozenset[Address]]] = {}

    def addresses(self, name: str) -> frozenset[Address]:
        """Of this host; none when nobody knows it."""
        with self._mutex:
            valid_until, known = self._known.get(name, (float("-inf"), frozenset()))
        if self._clock() < valid_until:
            return known
        try:
            known, keep_s = self._look_up(name), KEEP_S
        except (OSError, UnicodeError):
            keep_s = RETRY_S
        with self._mutex:
            self._known[name] = self._clock() + keep_s, known
        return known


def find_source(rules: Iterable[SourceRule], calling: str, peer: Address, names: HostNames) -> SourceRule | None:
    """The first rule for this calling AE title (exact, case counts) whose host is the peer's."""
    return next((rule for rule in rules if rule.ae_title == calling and is_host(rule.host, peer, names)), None)


def is_committer(rule: CommitterRule, calling: str, peer: Address, names: HostNames) -> bool:
    """Whether the peer is that destination."""
    return rule.ae_title == calling and is_host(rule.host, peer, names)


def is_host(host: str, peer: Address, names: HostNames) -> bool:
    """Whether `host` (an address, a network such as 10.1.0.0/16, or a host name) is or holds the peer."""
    host = host.strip()
    address = parse_address(host)
    if address is not None:
        return address == peer
    try:
        return peer in ipaddress.ip_network(host, strict=False)
    except ValueError:
        return peer in names.addresses(host.lower())


def is_who_it_says(rule: SourceRule, identity: UserIdentity | None) -> bool:
    """Whether the peer's user identity is what the rule asks for; every one is where the rule asks for none."""
    if not rule.user_name:
        return True
    if identity is None or identity.kind not in {USER_NAME, USER_NAME_AND_PASSCODE}:
        return False
    if not hmac.compare_digest(identity.primary, rule.user_name.encode()):
        return False
    if not rule.user_secret:
        return True
    salt, _, digest = rule.user_secret.partition("$")
    said = hashlib.sha256(salt.encode() + identity.secondary).hexdigest()
    return identity.kind == USER_NAME_AND_PASSCODE and hmac.compare_digest(said, digest)
