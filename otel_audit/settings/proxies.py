"""The settings about proxies: which of them are believed about the client, and the header that they write."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from otel_audit.settings.kinds import Choice
from otel_audit.settings.setting import Mismatch, Setting, Variable

__all__ = ["FORWARDED_HEADER", "TRUSTED_PROXIES", "UNIX", "ForwardedHeader", "ProxyList"]

# A peer without an address: whoever can open the socket's file is on this machine.
UNIX: Final = "unix"


class ForwardedHeader(StrEnum):
    """The header in which proxies say whom they speak for."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"  # Source: RFC 7239


@dataclass(frozen=True, slots=True)
class ProxyList:
    """Addresses, networks, and `unix` for peers on a Unix socket. Never everybody: that would believe every client."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a comma list of addresses and networks such as 10.0.0.0/8, and of unix"

    def parse(self, given: object) -> tuple[str, ...]:
        """See `Kind`."""
        if isinstance(given, str):
            words: Iterable[object] = given.split(",") if given.strip() else ()
        elif isinstance(given, Iterable):
            words = given
        else:
            raise Mismatch
        return tuple(_network(str(word).strip().lower()) for word in words)


def _network(word: str) -> str:
    if word == UNIX:
        return word
    try:
        network = ipaddress.ip_network(word)
    except ValueError as error:
        raise Mismatch("no host bits may be set" if "host bits" in str(error) else "") from None
    if network.prefixlen == 0:
        raise Mismatch("it would believe every client; name the networks of your proxies")
    return str(network)


TRUSTED_PROXIES: Final[Setting[tuple[str, ...]]] = Setting(
    name="trusted_proxies",
    variables=(Variable("OTEL_AUDIT_TRUSTED_PROXIES"),),
    kind=ProxyList(),
    default=(),
    default_text="none",
    doc=(
        "The proxies that are believed about the address of a client and the id of a request (X-Request-Id): "
        "addresses, networks, and unix for peers on a Unix socket. The header with the addresses is read from its "
        "end: the first address that belongs to no trusted proxy is the client's."
    ),
    reason="a client can write any header that no proxy vouches for",
)
FORWARDED_HEADER: Final[Setting[ForwardedHeader]] = Setting(
    name="forwarded_header",
    variables=(Variable("OTEL_AUDIT_FORWARDED_HEADER"),),
    kind=Choice(ForwardedHeader),
    default=ForwardedHeader.X_FORWARDED_FOR,
    doc=(
        "The header in which trusted proxies name the client. The other header is not read, since proxies pass on "
        "unchanged what they do not write themselves."
    ),
    reason="most proxies write it",
)
