"""Where a request came from, made less exact or removed: the client's address and its user agent."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from otel_audit.redaction.line_fit import Address
from otel_audit.settings.privacy import ClientInfo

__all__ = ["network_of", "product_of", "shortened_attributes", "shortened_source"]

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
_IPV6_PREFIX: Final = 48  # what one customer may have. Source: RFC 6177


def network_of(address: str) -> str:
    """The first address of the client's network: its last octet, or last 80 bits, are zero. Empty if it is none."""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""  # a name, or an address with a port: which part of it says who it is cannot be told
    if isinstance(known, ipaddress.IPv6Address) and known.ipv4_mapped is not None:
        known = known.ipv4_mapped
    prefix = _IPV4_PREFIX if known.version == 4 else _IPV6_PREFIX
    return str(ipaddress.ip_network((known, prefix), strict=False).network_address)


def product_of(user_agent: str) -> str:
    """The first product without its comment: `Mozilla/5.0`. Source: RFC 9110 section 10.1.5."""
    return next(iter(user_agent.split()), "").partition("(")[0]


_SOURCE: Final = {"ip": network_of, "user_agent": product_of}
_ATTRIBUTES: Final = {
    **dict.fromkeys(_ADDRESS_ATTRIBUTES.split(), network_of),
    **dict.fromkeys(_AGENT_ATTRIBUTES.split(), product_of),
}


def shortened_source(source: Any, info: ClientInfo, removed: set[Address]) -> Any:
    """The `source` of an event with what `info` leaves of it. The addresses of what was changed are in `removed`."""
    if info is ClientInfo.KEEP:
        return source
    if type(source) is not dict:  # of an odd model: what it holds cannot be told
        return {}
    left = _shortened(source, "source", _SOURCE, info, removed)
    return {key: value for key, value in left.items() if key != "user_agent" or value}


def shortened_attributes(attributes: dict[str, Any], info: ClientInfo, removed: set[Address]) -> dict[str, Any]:
    """The attributes; what they say about the client is as short as it is in `source`."""
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
