"""Record names as pseudonyms, and the addresses of clients with less detail.

A pseudonym is `p1:<key id>:<32 hex digits>`. The same name has the same pseudonym as long as the key stays the same, so
the actions of one person can be followed. Only somebody who holds the key can find out who it was, by trying names.
`p1` is the first form: the first 128 bits of HMAC-SHA-256 (RFC 2104) of the name in UTF-8.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from otel_audit.errors import ConfigError
from otel_audit.json_values import safe_text
from otel_audit.redaction.caps import Address, json_text
from otel_audit.settings.privacy import ClientInfo

__all__ = [
    "PseudonymKey",
    "Pseudonyms",
    "network_of",
    "product_of",
    "read_keyring",
    "shortened_attributes",
    "shortened_source",
]


_KEY_HEX_DIGITS: Final = 64
_KEY_LINE: Final = re.compile(rb"([0-9A-Fa-f]{64})(?:\s+#.*)?")
_KEY_ID_DOMAIN: Final = b"otel-audit pseudonym key"
_NAMES: Final = ("username", "id", "on_behalf_of")
_MAKE_ONE: Final = "make one with `openssl rand -hex 32`"


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """A key of 32 bytes. `id` is 8 hex digits that follow from the key and do not reveal it."""

    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> PseudonymKey:
        """Return the key made of these 32 bytes."""
        return cls(hmac.digest(secret, _KEY_ID_DOMAIN, hashlib.sha256).hex()[:8], secret)

    def pseudonym_of(self, name: str) -> str:
        """Return the pseudonym that is recorded instead of the name."""
        return f"p1:{self.id}:{hmac.digest(self.secret, safe_text(name).encode(), 'sha256').hex()[:32]}"


class Pseudonyms(msgspec.Struct, frozen=True):
    """Keys, the newest first. The newest is used, and the others find earlier pseudonyms."""

    keys: tuple[PseudonymKey, ...]

    def of(self, name: str) -> str:
        """Return the pseudonym under the newest key. An empty name stays empty."""
        return self.keys[0].pseudonym_of(name) if name else name

    def of_principal(self, principal: Any) -> Any:
        """Return a `principal` with pseudonyms for its names. If it is not a mapping, it may be a name itself."""
        if type(principal) is dict:
            return {key: self._of_any(value) if key in _NAMES else value for key, value in principal.items()}
        return self._of_any(principal)

    def _of_any(self, name: Any) -> Any:
        if name is None:
            return None
        return self.of(name if type(name) is str else json_text(name))

    def all_of(self, name: str) -> list[str]:
        """Return every pseudonym that the name has had, the newest first."""
        return [key.pseudonym_of(name) for key in self.keys]


def read_keyring(path: str | Path) -> Pseudonyms:
    """Return the keys in a file: 64 hex digits a line, the newest first. Empty lines and `# comments` are ignored.

    Raises:
        ConfigError: the file cannot be read, others may read it, or it has another format. The message shows no key.
    """
    try:
        with open(path, "rb") as file:
            _refuse_if_others_may_read(path, os.fstat(file.fileno()))
            lines = file.read().splitlines()
    except OSError as error:
        raise ConfigError(
            f"pseudonym_keys: expected a readable file of keys, got {str(path)!r}: {error.strerror}; correct the path, "
            f"or {_MAKE_ONE}"
        ) from error
    keys = [_key(path, number, line) for number, line in enumerate(map(bytes.strip, lines), start=1) if _is_key(line)]
    if not keys:
        raise ConfigError(f"{path}: expected a key of {_KEY_HEX_DIGITS} hex digits, got none; {_MAKE_ONE}")
    if len({key.id for key in keys}) < len(keys):
        raise ConfigError(f"{path}: expected each key once, got one a second time; remove it")
    return Pseudonyms(tuple(keys))


def _is_key(line: bytes) -> bool:
    return bool(line) and not line.startswith(b"#")


def _key(path: str | Path, number: int, line: bytes) -> PseudonymKey:
    found = _KEY_LINE.fullmatch(line)
    if found is None:
        raise ConfigError(
            f"{path}:{number}: expected a key of {_KEY_HEX_DIGITS} hex digits, got another line of {len(line)} "
            f"characters, which is not shown; {_MAKE_ONE}"
        )
    return PseudonymKey.of(bytes.fromhex(found[1].decode()))


def _refuse_if_others_may_read(path: str | Path, status: os.stat_result) -> None:
    # A secret that root mounts for the service's group, as Kubernetes does, can reach the service in no other way.
    allowed = 0o640 if status.st_uid == 0 and os.geteuid() != 0 else 0o600
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~allowed & 0o077:
        raise ConfigError(
            f"{path}: expected a file of keys that nobody else may read, mode {allowed:04o} or less, got {mode:04o}; "
            f"run: chmod {allowed:o} {path}"
        )


# Attributes that say the same as `source`. Source: OTel semantic conventions, today's and earlier names; the headers
# that proxies write.
_ADDRESS_ATTRIBUTES: Final = """
    client.address client.geo.location.lat client.geo.location.lon client.port client.socket.address client.socket.port
    http.client_ip net.peer.ip net.peer.name net.peer.port net.sock.peer.addr net.sock.peer.port network.peer.address
    network.peer.port source.address source.port http.request.header.forwarded http.request.header.x-forwarded-for
    http.request.header.x-real-ip http.request.header.true-client-ip http.request.header.cf-connecting-ip
"""
_AGENT_ATTRIBUTES: Final = "user_agent.original http.user_agent http.request.header.user-agent"

_IPV4_PREFIX: Final = 24
_IPV6_PREFIX: Final = 48  # the block of one customer. Source: RFC 6177


def network_of(address: str) -> str:
    """Return the client's network, with the last octet or the last 80 bits zero. Empty if it is not an address."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""  # a name, or an address with a port: nobody can tell which part identifies the client
    if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped is not None:
        known = known.ipv4_mapped
    prefix = _IPV4_PREFIX if known.version == 4 else _IPV6_PREFIX
    return str(ipaddress.ip_network((known, prefix), strict=False).network_address)


def product_of(user_agent: str) -> str:
    """Return the first product without its comment: `Mozilla/5.0`. Source: RFC 9110 section 10.1.5."""
    return next(iter(user_agent.split()), "").partition("(")[0]


_SOURCE: Final = {"ip": network_of, "user_agent": product_of}
_ATTRIBUTES: Final = {
    **dict.fromkeys(_ADDRESS_ATTRIBUTES.split(), network_of),
    **dict.fromkeys(_AGENT_ATTRIBUTES.split(), product_of),
}


def shortened_source(source: Any, info: ClientInfo, removed: set[Address]) -> Any:
    """Return the `source` of an event with the detail that `info` allows.

    The addresses of changed parts are added to `removed`.
    """
    if info is ClientInfo.KEEP:
        return source
    if type(source) is not dict:  # an odd model with unknown content
        return {}
    left = _shortened(source, "source", _SOURCE, info, removed)
    return {key: value for key, value in left.items() if key != "user_agent" or value}


def shortened_attributes(attributes: dict[str, Any], info: ClientInfo, removed: set[Address]) -> dict[str, Any]:
    """Return the attributes, with those about the client shortened as in `source`."""
    return attributes if info is ClientInfo.KEEP else _shortened(attributes, "attributes", _ATTRIBUTES, info, removed)


def _shortened(
    values: dict[str, Any],
    name: str,
    rules: dict[str, Callable[[str], str]],
    info: ClientInfo,
    removed: set[Address],
) -> dict[str, Any]:
    left = dict(values)
    for key, value in values.items():
        shorten = rules.get(key.lower())
        if shorten is not None and value is not None:
            left[key] = shorten(value) if info is ClientInfo.TRUNCATE and type(value) is str else ""
            if left[key] != value:
                removed.add((name, key))
    return left
