"""The settings for what an event says about people: rules for secrets, pseudonyms, and trusted proxies.

A trusted proxy is believed about the address of the client. The header that it writes the address into is a setting
too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from otel_audit.settings.setting import AnyPath, Choice, Mismatch, Setting, Variable

__all__ = [
    "CLIENT_INFO",
    "FORWARDED_HEADER",
    "KEEP_ATTRIBUTES",
    "KEEP_NAMES",
    "PRIVACY_TABLE",
    "PSEUDONYM_KEYS",
    "REDACT_NAMES",
    "REDACT_PATTERNS",
    "TRUSTED_PROXIES",
    "UNIX",
    "ClientInfo",
    "ForwardedHeader",
    "ProxyList",
    "pattern_fault",
]


# A peer without an address. It can open the socket's file, so it is on this machine.
UNIX: Final = "unix"


class ForwardedHeader(StrEnum):
    """The header in which proxies name their client."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"  # Source: RFC 7239


class ProxyList(msgspec.Struct, frozen=True):
    """Addresses, networks, and `unix` for peers on a Unix socket.

    Never everybody, since then every client would be believed.
    """

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


class ClientInfo(StrEnum):
    """The part of a client's address and user agent that is kept."""

    KEEP = "keep"
    TRUNCATE = "truncate"  # its network, and the first product of the user agent
    DROP = "drop"


def pattern_fault(pattern: str) -> str | None:
    """Return what is wrong with an RE2 pattern, and where, or None if nothing is."""
    import re2  # not at the top, since most services have no pattern of their own

    options = re2.Options()
    options.log_errors = False
    try:
        regex = re2.compile(pattern.encode(), options)
    except UnicodeEncodeError as error:
        return f"at character {error.start + 1}: a lone surrogate"
    except re2.error as error:
        message = error.args[0].decode("utf-8", "replace") if error.args else "it cannot be compiled"
        at = pattern.find(message.partition(": ")[2])  # RE2 says what is wrong, not where
        return f"at character {max(at, 0) + 1}: {message}"
    return "it matches the empty text" if regex.search(b"") is not None else None


class PatternList(msgspec.Struct, frozen=True):
    """RE2 patterns. They may contain commas, so a variable holds one per line."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "RE2 patterns: a list, in a variable one a line"

    def parse(self, given: object) -> tuple[str, ...]:
        """See `Kind`."""
        patterns = [line.strip() for line in given.split("\n")] if isinstance(given, str) else _texts(given)
        kept = tuple(pattern for pattern in patterns if pattern)
        for number, pattern in enumerate(kept, start=1):
            if fault := pattern_fault(pattern):
                raise Mismatch(f"pattern {number} of {len(kept)}, {fault}")
        return kept


class NameList(msgspec.Struct, frozen=True):
    """Names of keys."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a comma list of names"

    def parse(self, given: object) -> tuple[str, ...]:
        """See `Kind`."""
        names = tuple(word.strip() for word in (given.split(",") if isinstance(given, str) else _texts(given)))
        if not all(names):
            raise Mismatch("one of the names is empty")
        return names


def _texts(given: object) -> list[str]:
    if not isinstance(given, Iterable):
        raise Mismatch
    return [str(item) for item in given]


REDACT_PATTERNS: Final[Setting[tuple[str, ...]]] = Setting(
    name="redact_patterns",
    variables=(Variable("OTEL_AUDIT_REDACT_PATTERNS"),),
    kind=PatternList(),
    default=(),
    default_text="none",
    doc=(
        "Patterns for secrets of your own, besides those of otel_audit/redaction/patterns.py. If a pattern has "
        "groups, they are the secret; if not, the whole match is."
    ),
    reason="only you know what your own secrets look like",
)
REDACT_NAMES: Final[Setting[tuple[str, ...]]] = Setting(
    name="redact_names",
    variables=(Variable("OTEL_AUDIT_REDACT_NAMES"),),
    kind=NameList(),
    default=(),
    default_text="none",
    doc=(
        "Names of attributes whose values are removed, besides password, token and the like. They are compared word "
        "by word: employee_number also means employeeNumber and X-Employee-Number."
    ),
    reason="only you know what is personal in your attributes",
)
KEEP_NAMES: Final[Setting[tuple[str, ...]]] = Setting(
    name="keep_names",
    variables=(Variable("OTEL_AUDIT_KEEP_NAMES"),),
    kind=NameList(),
    default=(),
    default_text="none",
    doc=(
        "Names of attributes that look like those of secrets but are not, such as session_id. All words of the name "
        "must match. A value that looks like a secret is still removed."
    ),
    reason="a value is removed in case of doubt",
)
KEEP_ATTRIBUTES: Final[Setting[tuple[str, ...] | None]] = Setting(
    name="keep_attributes",
    variables=(Variable("OTEL_AUDIT_KEEP_ATTRIBUTES"),),
    kind=NameList(),
    default=None,
    default_text="all",
    doc=(
        "The only attributes that are recorded; all others are removed and listed. http.* means all that begin with "
        "http., those that integrations write included."
    ),
    reason="attributes are written on purpose; what is recorded by accident is in texts",
)
CLIENT_INFO: Final[Setting[ClientInfo]] = Setting(
    name="client_info",
    variables=(Variable("OTEL_AUDIT_CLIENT_INFO"),),
    kind=Choice(ClientInfo),
    default=ClientInfo.KEEP,
    doc=(
        "What is kept of the client's address and user agent. truncate: the network of the address (/24, and /48 "
        "with IPv6) and the first product of the user agent. drop: neither."
    ),
    reason="every investigation asks where a request came from",
)
PSEUDONYM_KEYS: Final[Setting[Path | None]] = Setting(
    name="pseudonym_keys",
    variables=(Variable("OTEL_AUDIT_PSEUDONYM_KEYS"),),
    kind=AnyPath(),
    default=None,
    doc=(
        "A file of keys, one of 64 hex digits a line, the newest first. With it, principal.username, id and "
        "on_behalf_of are recorded as HMAC-SHA-256 under the first key: see docs/privacy.md."
    ),
    reason="for most readers an audit trail that does not say who acted is worth little",
)

PRIVACY_TABLE: Final = (
    REDACT_PATTERNS,
    REDACT_NAMES,
    KEEP_NAMES,
    KEEP_ATTRIBUTES,
    CLIENT_INFO,
    PSEUDONYM_KEYS,
)
