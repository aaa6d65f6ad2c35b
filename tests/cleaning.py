"""What the tests of redaction have cleaned: events as the logger makes them, and such as nobody should."""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from otel_audit.event import AuditEvent
from tests.secret_samples import ALNUM, HEX, chars, planted

__all__ = ["EVENTS", "HOSTILE_EVENTS", "ORDINARY_VALUES", "all_texts_of", "an_event", "texts_of"]


def an_event() -> dict[str, Any]:
    """A dict as the logger makes it, with every field that takes a text."""
    return {
        "event_type": "mcp.tools.call",
        "timestamp": "2026-11-25T03:43:00.123456+00:00",
        "request_id": "0192f3a0-7c1d-7abc-8def-0123456789ab",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
        "principal": {"username": "alice@example.com", "roles": ["scientist", "admin"], "auth_type": "oidc"},
        "source": {"ip": "2001:db8::1", "transport": "mcp-http", "user_agent": "python-httpx/0.27"},
        "action": {"mcp_tool": "get_online_features", "path": "/get-online-features", "arguments_digest": "ab" * 32},
        "resource": {"type": "feature_view", "name": "driver_stats:v2", "actions": ["READ_ONLINE"]},
        "outcome": "success",
        "duration_ms": 12.5,
        "detail": "POST /get-online-features -> 200",
        "event_id": "0192f3a0-7c1d-7abc-8def-0123456789ac",
        "attributes": {"rows": 3, "ratio": 0.5, "cached": True, "views": ["a", "b"], "input_tokens": 812},
    }


def texts_of(value: Any) -> Iterator[str]:
    """All keys below the event and all texts of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def all_texts_of(event: dict[str, Any]) -> list[str]:
    """What the quick look looks at."""
    return [text for value in event.values() for text in texts_of(value)]


# Not letters at random: they may spell "bearer", and what follows is then a credential.
PATH_PARTS = [
    "users",
    "v2",
    "feature-views",
    "tokens",
    "sessions",
    "secrets",
    "api_keys",
    "auth",
    "42",
    "a.b",
    "~al",
    "x:y",
]
ORDINARY_VALUES = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda value: value.hex),
    chars(HEX, 16),
    chars(HEX, 32),
    chars(HEX, 40),
    chars(HEX, 64),
    chars(HEX, 64).map(lambda digest: f"sha256:{digest}"),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.integers(0, 10**12 - 1).map(str),
    # Times in ms, us and ns. Not any number of that length: one in forty is the number of a card, by all that it shows.
    st.sampled_from([10**12, 10**15, 10**18]).flatmap(lambda unit: st.integers(unit, 2 * unit - 1)).map(str),
    st.ip_addresses().map(str),
    st.tuples(chars(ALNUM + ".+_-", 1, 12), chars(string.ascii_lowercase, 1, 12)).map(
        lambda parts: f"{parts[0]}@{parts[1]}.example.com"
    ),
    st.lists(st.sampled_from(PATH_PARTS), min_size=1, max_size=6).map(lambda parts: "/" + "/".join(parts)),
    st.tuples(chars(HEX, 32), chars(HEX, 16)).map(lambda ids: f"00-{ids[0]}-{ids[1]}-01"),
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | planted().map(lambda case: case[1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
ATTRIBUTE_KEYS = st.text(max_size=40) | st.sampled_from(["api_key", "input_tokens", "a.b", "x[0]", "token: "])
SCALARS = st.text(max_size=60) | st.integers() | st.floats() | st.booleans() | ORDINARY_VALUES
EVENTS = st.fixed_dictionaries(
    {"event_type": st.text(), "request_id": st.text() | st.uuids().map(str)},
    optional={
        "principal": st.fixed_dictionaries({"username": st.text(), "roles": st.lists(st.text(max_size=8))}),
        "outcome": st.sampled_from(["success", "error"]),
        "detail": st.text() | planted().map(lambda case: case[1]),
        "attributes": st.dictionaries(ATTRIBUTE_KEYS, SCALARS | st.lists(SCALARS, max_size=5), max_size=5),
        "redacted": st.lists(st.text(max_size=20), max_size=3),
    },
)
HOSTILE_EVENTS = st.dictionaries(st.sampled_from(sorted(AuditEvent.model_fields)) | st.text(), JSON_VALUES, max_size=8)
