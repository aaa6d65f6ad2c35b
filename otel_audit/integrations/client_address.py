"""The address of a client behind proxies, according to trusted proxies only."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from otel_audit.errors import ConfigError
from otel_audit.settings import ForwardedHeader
from otel_audit.settings.privacy import TRUSTED_PROXIES, UNIX
from otel_audit.settings.setting import Mismatch

__all__ = ["TrustedProxies"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# One element of `Forwarded`, and its pairs. Source: RFC 7239, section 4. Possessive, so that spaces are scanned once.
_PAIR: Final = r'([!#$%&\'*+.^_`|~0-9A-Za-z-]++)=(?:"([^"\\]*+)"|([!#$%&\'*+.^_`|~0-9A-Za-z:\[\]-]*+))'
_ELEMENT: Final = re.compile(rf"\s*+{_PAIR}(?:\s*+;\s*+{_PAIR})*+\s*+;?\s*+")
_PAIRS: Final = re.compile(_PAIR)
_MOST_CHARS: Final = 64  # of an address with its port and zone
_MOST_HOPS: Final = 32


class TrustedProxies:
    """The proxies that the setting `trusted_proxies` lists, and the header that they write.

    Raises:
        ConfigError: a proxy is neither an address, nor a network, nor `unix`; or the networks include everybody.
    """

    def __init__(self, proxies: Iterable[str] = (), header: ForwardedHeader = ForwardedHeader.X_FORWARDED_FOR) -> None:
        words = _checked(proxies)
        self.header = header.encode()
        self._with_unix = UNIX in words
        self._networks = tuple(ipaddress.ip_network(word) for word in words if word != UNIX)
        self._read = _forwarded if header is ForwardedHeader.FORWARDED else _x_forwarded_for
        self._trusts_peer = lru_cache(maxsize=1024)(self._trusts_text)

    def __bool__(self) -> bool:
        return self._with_unix or bool(self._networks)

    def trusts(self, peer: str) -> bool:
        """Return True if the peer of a connection is one of them. On a Unix socket, `peer` is empty."""
        return self._trusts_peer(peer)

    def said_in(self, headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        """Return the values of the header that they write, in the order of the request."""
        return [value for name, value in headers if name == self.header]

    def client(self, peer: str, values: Sequence[bytes]) -> str:
        """Return the address of the client. `peer` is the other end of the connection, empty on a Unix socket.

        `values` are those of `header`, in the order of the request. They are read from the end, where the nearest proxy
        wrote, up to the first address that is not a trusted proxy. Anything before that, or before an element that is
        not an address, could be invented by anybody. If nothing more is known, the last trusted proxy is returned.
        """
        if not values or not self._trusts_peer(peer):
            return peer
        known = peer
        for number, word in enumerate(self._read(values)):
            address = _address(word)
            if address is None or number == _MOST_HOPS:
                break
            known = str(address)
            if not self._trusts(address):
                break
        return known

    def _trusts_text(self, peer: str) -> bool:
        address = _address(peer)
        return self._with_unix and not peer if address is None else self._trusts(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _checked(proxies: Iterable[str]) -> tuple[str, ...]:
    given = proxies if isinstance(proxies, str) else list(proxies)
    try:
        return TRUSTED_PROXIES.kind.parse(given)
    except Mismatch as mismatch:
        remedy = f"; {mismatch}" if str(mismatch) else ""
        raise ConfigError(f"trusted_proxies: expected {TRUSTED_PROXIES.kind.expected}, got {given!r}{remedy}") from None


def _x_forwarded_for(values: Sequence[bytes]) -> Iterator[str]:
    """Yield the addresses that the proxies wrote, nearest first."""
    return (word.strip() for word in _from_the_end(values))


def _forwarded(values: Sequence[bytes]) -> Iterator[str]:
    """Yield the addresses that the proxies wrote, nearest first; empty for an element without a readable one."""
    for element in _from_the_end(values):
        pairs = _PAIRS.findall(element) if _ELEMENT.fullmatch(element) else ()
        # Pair by pair: a quoted value of another pair, such as `host`, comes from the client and may look like a pair.
        yield next((quoted or plain for name, quoted, plain in pairs if name.lower() == "for"), "")


def _from_the_end(values: Sequence[bytes]) -> Iterator[str]:
    """Yield the elements of a list in a header from its end, so that a long list costs only the part that is read.

    A comma inside quotes ends an element too. No address contains one, and a client must not be able to hide the
    elements that proxies added after it by opening a quote that never ends.
    """
    for value in reversed(values):
        end = len(value)
        while end >= 0:
            start = value.rfind(b",", 0, end)
            yield value[start + 1 : end].decode("latin-1")
            end = start


def _address(word: str) -> Address | None:
    """Return the address in a word, without port, brackets and zone. IPv4 inside IPv6 becomes IPv4."""
    if len(word) > _MOST_CHARS:
        return None
    if word.startswith("["):
        word = word[1:].partition("]")[0]
    elif word.count(":") == 1:
        word = word.partition(":")[0]
    try:
        address = ipaddress.ip_address(word.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
