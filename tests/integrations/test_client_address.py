"""The address of a client is what trusted proxies say of it, and never what it says of itself."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from otel_audit import AuditMiddleware, ConfigError
from otel_audit.integrations.client_address import TrustedProxies
from otel_audit.settings import ForwardedHeader
from tests.integrations.serving import a_logger, audited, the_event

PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8::/32"])
RFC7239 = TrustedProxies(["10.0.0.0/8", "2001:db8::/32"], ForwardedHeader.FORWARDED)


@pytest.mark.parametrize(
    ("peer", "values", "client"),
    [
        ("203.0.113.7", [b"198.51.100.1"], "203.0.113.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.1, 10.2.3.4"], "198.51.100.1"),
        ("10.0.0.1", [b"6.6.6.6", b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"10.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [b"198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b"198.51.100.1, "], "10.0.0.1"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", [b"[2001:4860::1]:4711"], "2001:4860::1"),
        ("10.0.0.1", [b"2001:4860::1, 2001:db8::5"], "2001:4860::1"),
        ("::ffff:10.0.0.1", [b"::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"fe80::1%eth0"], "fe80::1"),
        ("10.0.0.1", [b"<script>"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, ü".encode()], "10.0.0.1"),
        ("", [b"198.51.100.1"], ""),
        ("testclient", [b"198.51.100.1"], "testclient"),
    ],
)
def test_the_list_is_read_from_its_end_and_only_behind_trusted_proxies(
    peer: str, values: list[bytes], client: str
) -> None:
    assert PROXIES.client(peer, values) == client


@pytest.mark.parametrize(("proxies", "client"), [(31, "192.0.2.9"), (32, "10.0.0.32"), (40, "10.0.0.32")])
def test_of_a_long_row_of_proxies_the_nearest_32_are_asked(proxies: int, client: str) -> None:
    row = ", ".join(["192.0.2.9", *(f"10.0.0.{number}" for number in range(proxies, 0, -1))])

    assert PROXIES.client("10.0.0.254", [row.encode()]) == client


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (b"for=198.51.100.1", "198.51.100.1"),
        (b"For=198.51.100.1;proto=https;by=10.0.0.1", "198.51.100.1"),
        (b'proto=http; for="198.51.100.1:80"', "198.51.100.1"),
        (b'for="[2001:4860::1]:4711"', "2001:4860::1"),
        (b"for=6.6.6.6, for=198.51.100.1", "198.51.100.1"),
        (b'for="6.6.6.6, for=198.51.100.1', "198.51.100.1"),  # a quote that never ends swallows nothing
        (b"for=198.51.100.1, for=_hidden", "10.0.0.1"),
        (b"for=unknown", "10.0.0.1"),
        (b"by=10.0.0.2", "10.0.0.1"),
        (b"xfor=6.6.6.6", "10.0.0.1"),
        (b'by="for=6.6.6.6"', "10.0.0.1"),
        (b'host="x;for=6.6.6.6 ";for=198.51.100.1', "198.51.100.1"),
        (b'host="x;for=6.6.6.6";for=198.51.100.1', "198.51.100.1"),
        (b"for=198.51.100.1 ; proto=https ; ", "198.51.100.1"),
        (b"for=198.51.100.1 and more", "10.0.0.1"),  # an element is read as a whole, or not at all
        (b'for=198.51.100.1;host="x', "10.0.0.1"),
        (b"198.51.100.1", "10.0.0.1"),
        (b"for=", "10.0.0.1"),
        (b"", "10.0.0.1"),
    ],
)
def test_the_header_of_rfc_7239_is_read_as_strictly(value: bytes, client: str) -> None:
    assert RFC7239.client("10.0.0.1", [value]) == client


@pytest.mark.parametrize(
    "value", [b"for=a" + b" " * 64_000 + b"x", b" " * 64_000 + b"x", b"for=a" + b" ; a=b" * 10_000 + b" x"]
)
def test_no_header_keeps_the_event_loop_busy(value: bytes) -> None:
    started_s = time.process_time()

    assert RFC7239.client("10.0.0.1", [value]) == "10.0.0.1"

    assert time.process_time() - started_s < 5  # one pass takes milliseconds, one that goes back half a minute


def test_proxies_on_a_unix_socket_are_trusted_only_if_they_are_named() -> None:
    assert TrustedProxies(["unix"]).client("", [b"198.51.100.1"]) == "198.51.100.1"
    assert TrustedProxies(["unix"]).client("10.0.0.1", [b"198.51.100.1"]) == "10.0.0.1"


@pytest.mark.parametrize("proxy", ["*", "0.0.0.0/0", "10.0.0.1/8", "proxy.example", ""])
def test_proxies_that_are_no_networks_are_refused_with_the_valid_forms(proxy: str) -> None:
    with pytest.raises(ConfigError, match=r"trusted_proxies: expected a comma list of addresses and networks"):
        TrustedProxies([proxy])


addresses = st.ip_addresses().map(str)
words = st.one_of(addresses, st.text(max_size=20), st.sampled_from(["unknown", "10.0.0.9", "", '"', "for=", ";"]))


@given(
    invented=st.lists(words, max_size=6),
    real=addresses,
    hops=st.lists(st.sampled_from(["10.1.1.1", "10.2.2.2"]), max_size=3),
)
def test_whatever_a_client_invents_the_proxy_next_to_it_says_who_it_was(
    invented: list[str], real: str, hops: list[str]
) -> None:
    address = ipaddress.ip_address(real)
    expected = str(getattr(address, "ipv4_mapped", None) or address)
    if PROXIES.client(real, [b"198.51.100.1"]) != real:
        return  # the client is in a trusted network itself: then its word counts
    value = ", ".join([*invented, real, *hops]).encode("utf-8", "surrogatepass")

    assert PROXIES.client("10.0.0.1", [value]) == expected


def an_app() -> Starlette:
    return Starlette(routes=[Route("/", lambda request: PlainTextResponse(""))])


def test_the_setting_names_the_proxies_of_a_service(tmp_path: Path) -> None:
    audit = a_logger(tmp_path / "audit", settings={"trusted_proxies": "127.0.0.0/8"})
    app = AuditMiddleware(an_app(), audit=audit)
    headers = {"x-forwarded-for": "6.6.6.6, 198.51.100.1", "forwarded": "for=6.6.6.6"}

    event = the_event(app, tmp_path / "audit", lambda server: httpx.get(server.url, headers=headers))

    assert event["source"]["ip"] == "198.51.100.1"


def test_the_header_that_proxies_do_not_write_is_not_read(tmp_path: Path) -> None:
    app = audited(
        an_app(), tmp_path / "audit", trusted_proxies=["127.0.0.1"], forwarded_header=ForwardedHeader.FORWARDED
    )
    headers = {"x-forwarded-for": "6.6.6.6", "forwarded": "for=198.51.100.1"}

    event = the_event(app, tmp_path / "audit", lambda server: httpx.get(server.url, headers=headers))

    assert event["source"]["ip"] == "198.51.100.1"


def test_nobody_is_trusted_who_was_not_named(tmp_path: Path) -> None:
    headers = {"x-forwarded-for": "6.6.6.6", "forwarded": "for=6.6.6.6"}
    app = audited(an_app(), tmp_path / "audit")

    event = the_event(app, tmp_path / "audit", lambda server: httpx.get(server.url, headers=headers))

    assert event["source"]["ip"] == "127.0.0.1"
