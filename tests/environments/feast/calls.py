"""Calls for two audit loggers at once: Feast's and ours. Made of plain data, so that each gets objects of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from feast.audit import audit_logger as theirs
from hypothesis import strategies as st
from opentelemetry import trace

from otel_audit.redaction.screen import standard_screen

__all__ = ["INSTANTS_NS", "Call", "Part", "calls", "events", "inside", "make", "spans", "words"]

PART_NAMES = {
    "principal": "AuditPrincipal",
    "source": "AuditSource",
    "action": "AuditAction",
    "resource": "AuditResource",
}
READ_TOOLS = ["get_online_features", "retrieve_online_documents", "get_historical_features"]
INSTANTS_NS = st.integers(0, 4_000_000_000_000_000_000)


def _is_free_of_secrets(text: str) -> bool:
    return standard_screen().find(text.encode()) is None


# Redaction is a difference that is wanted, so no text here looks like a secret. What is cut, too, is longer than these.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=16).filter(_is_free_of_secrets)
words = st.one_of(
    texts, st.sampled_from(["", "success", "failure", "allow", "mcp_error", "ünï", '<&>"\\/', "a\u2028b", "\x00\x7f"])
)
optional_words = st.none() | words
outcomes = st.sampled_from(["success", "error", "denied", "", "allow", "mcp_error", "Success"]) | words
durations = (
    st.none() | st.floats() | st.integers(-(2**70), 2**70) | st.sampled_from([0, -0.0, 1e16, 1e308, 5e-324, "1.5"])
)
tools = st.sampled_from([*READ_TOOLS, "get_online_features_get_online_features_post", ""]) | words
actions = st.lists(st.sampled_from(["READ_ONLINE", "READ_OFFLINE", "WRITE_ONLINE", "DELETE"]) | words, max_size=3)
event_types = st.sampled_from(["http.request", "mcp.tools.call", "authn.success"]) | words


@dataclass(frozen=True)
class Part:
    """A part of an event: who makes the object for our logger, and which of its fields are given.

    `maker` is `own` (each logger gets its own class), `theirs` (ours gets Feast's too) or `dict`.
    """

    name: str
    fields: Mapping[str, Any]
    maker: str


@dataclass(frozen=True)
class Call:
    """One call of a method, by keyword."""

    method: str
    arguments: Mapping[str, Any]


def _parts(name: str, fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Part]:
    return st.builds(
        Part, st.just(name), st.fixed_dictionaries({}, optional=fields), st.sampled_from(["own", "theirs", "dict"])
    )


principals = _parts("principal", {"username": words, "roles": st.lists(words, max_size=3), "auth_type": words})
sources = _parts("source", {"ip": words, "transport": words})
action_parts = _parts("action", {"mcp_tool": tools, "path": words})
resources = _parts("resource", {"type": words, "name": words, "actions": actions})


def _calls(method: str, required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[Call]:
    return st.builds(Call, st.just(method), st.fixed_dictionaries({"request_id": words, **required}, optional=optional))


_WHO: dict[str, Any] = {"principal": st.none() | principals}
_TIMED: dict[str, Any] = {
    **_WHO,
    "source": st.none() | sources,
    "resource": st.none() | resources,
    "outcome": outcomes,
    "duration_ms": durations,
}

calls: st.SearchStrategy[Call] = st.one_of(
    _calls("log_mcp_call", {"tool_name": tools}, {**_TIMED, "path": words, "detail": words}),
    _calls(
        "log_http_request",
        {"method": st.sampled_from(["GET", "POST", "ünï", ""]), "path": words},
        {**_TIMED, "status_code": st.integers(-1, 10**20)},
    ).filter(lambda call: _is_free_of_secrets(f"{call.arguments['method']} {call.arguments['path']} -> 200")),
    _calls("log_authn", {"outcome": outcomes}, {**_WHO, "source": st.none() | sources, "detail": words}),
    _calls("log_authz", {"outcome": outcomes}, {**_WHO, "resource": st.none() | resources, "detail": words}),
)

events: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"event_type": event_types},
    optional={
        "timestamp": words | st.just("2026-01-01T00:00:00.000Z"),
        "request_id": words,
        "trace_id": optional_words,
        "span_id": optional_words,
        "jsonrpc_id": optional_words,
        "principal": principals,
        "source": sources,
        "action": action_parts,
        "resource": resources,
        "outcome": outcomes,
        "duration_ms": durations,
        "detail": words,
        "unknown_field": words,
    },
)

spans: st.SearchStrategy[trace.SpanContext | None] = st.none() | st.builds(
    trace.SpanContext,
    st.integers(0, 2**128 - 1),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.sampled_from([trace.TraceFlags(0), trace.TraceFlags(1)]),
)


def make(module: ModuleType, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with their parts made for the logger of this module."""
    return {name: _made(module, value) if isinstance(value, Part) else value for name, value in arguments.items()}


def _made(module: ModuleType, part: Part) -> Any:
    if part.maker == "dict":
        return dict(part.fields)
    maker = theirs if part.maker == "theirs" else module
    return getattr(maker, PART_NAMES[part.name])(**part.fields)


@contextlib.contextmanager
def inside(span: trace.SpanContext | None) -> Iterator[None]:
    """A span that is active, sampled or not, valid or not; or none."""
    with contextlib.ExitStack() as stack:
        if span is not None:
            stack.enter_context(trace.use_span(trace.NonRecordingSpan(span)))
        yield
