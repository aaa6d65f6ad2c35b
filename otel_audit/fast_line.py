"""Write an event without a model: its time as text, its span, and the texts that are searched for secrets."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from opentelemetry.trace import SpanContext

from otel_audit.json_values import INT64_MAX, INT64_MIN, JsonValues

__all__ = [
    "NOBODY",
    "NOTHING",
    "Action",
    "Draft",
    "Principal",
    "Resource",
    "Source",
    "SpanIds",
    "TimestampText",
    "caller_texts",
    "completed",
    "given_or",
    "request_detail",
    "span_ids",
    "time_ns_of",
    "word_of",
]

Text = str | UnsetType

_FEAST_KEYS = ("jsonrpc_id", "principal", "source", "action", "resource", "outcome", "duration_ms", "detail")


class Principal(msgspec.Struct, frozen=True, gc=False):
    """The JSON form of `AuditPrincipal`, without the fields that are UNSET."""

    username: str
    roles: list[str]
    auth_type: str
    id: Text = UNSET
    issuer: Text = UNSET
    kind: Text = UNSET
    on_behalf_of: Text = UNSET

    def renamed(self, pseudonym_of: Callable[[str], str]) -> Principal:
        """Return a copy with pseudonyms for its names."""

        def renamed(name: Text) -> Text:
            return name if name is UNSET else pseudonym_of(name)

        return msgspec.structs.replace(
            self, username=pseudonym_of(self.username), id=renamed(self.id), on_behalf_of=renamed(self.on_behalf_of)
        )


class Source(msgspec.Struct, frozen=True, gc=False):
    """The JSON form of `AuditSource`."""

    ip: str
    transport: str
    user_agent: Text = UNSET


class Action(msgspec.Struct, frozen=True, gc=False):
    """The JSON form of the `AuditAction` that a helper makes."""

    mcp_tool: str
    path: str
    method: Text = UNSET


class Resource(msgspec.Struct, frozen=True, gc=False):
    """The JSON form of `AuditResource`."""

    type: str
    name: str
    actions: list[str]


class Draft(msgspec.Struct, frozen=True, gc=False):
    """The JSON form of the `AuditEvent` that a helper makes, its fields in the order of the model."""

    event_type: str
    timestamp: str
    request_id: str
    trace_id: Text
    span_id: Text
    jsonrpc_id: Text
    principal: Principal
    source: Source
    action: Action
    resource: Resource
    outcome: str
    duration_ms: float | UnsetType
    detail: str
    event_id: Text
    trace_flags: int | UnsetType
    status_code: int | UnsetType = UNSET
    error_type: Text = UNSET
    parent_id: Text = UNSET
    attributes: dict[str, str] | UnsetType = UNSET


NOBODY = Principal("", [], "")
NOTHING = Resource("", "", [])


class SpanIds(msgspec.Struct, frozen=True, gc=False):
    """The span that an event belongs to, in hex, and its W3C trace flags."""

    trace_id: Text = UNSET
    span_id: Text = UNSET
    flags: int | UnsetType = UNSET


_NO_SPAN = SpanIds()


def span_ids(span: SpanContext) -> SpanIds:
    """Return the ids of a span, sampled or not; unset when it is none."""
    # Unpacked, since it is a tuple, and each property would cost a call.
    trace_id, span_id, _, flags, _, is_valid = span
    return SpanIds(trace_id.to_bytes(16).hex(), span_id.to_bytes(8).hex(), flags | 0) if is_valid else _NO_SPAN


class TimestampText:
    """Write times as Feast does: in UTC, cut to milliseconds, with `Z`. Remember the text of the last second."""

    def __init__(self) -> None:
        self._second = (-1, "")

    def of(self, time_ns: int) -> str:
        """Return the text of a time in nanoseconds since 1970."""
        second, rest = divmod(time_ns, 1_000_000_000)
        known, text = self._second
        if known != second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (second, text)
        return text + _MILLISECONDS[rest // 1_000_000]


_MILLISECONDS = tuple(f".{count:03d}Z" for count in range(1000))


def completed(
    fields: dict[str, Any], *, timestamp: str, request_id: str, span: SpanIds, event_id: str | None
) -> dict[str, Any]:
    """Return the event with the time, ids and span that it lacked, in the order of `AuditEvent`.

    A `trace_id` that is set stays. `event_id` is None if the sink gives events neither an id nor trace flags.
    """
    done = {
        "event_type": fields["event_type"],
        "timestamp": fields["timestamp"] or timestamp,
        "request_id": fields["request_id"] or request_id,
    }
    flags = fields.get("trace_flags")
    if "trace_id" not in fields and span.trace_id is not UNSET:
        done |= {"trace_id": span.trace_id, "span_id": span.span_id}
        flags = span.flags if event_id is not None else flags
    else:
        done |= {key: fields[key] for key in ("trace_id", "span_id") if key in fields}
    done |= {key: fields[key] for key in _FEAST_KEYS if key in fields}
    if known_id := fields.get("event_id") or event_id:
        done["event_id"] = known_id
    if flags is not None:
        done["trace_flags"] = flags
    return done | {key: value for key, value in fields.items() if key not in done}


def caller_texts(fields: dict[str, Any]) -> list[str]:
    """Return every text of an event that its caller gave, also the keys of `attributes`.

    Raises:
        TypeError: a value has a type that no field has, or is a number beyond int64, and must not be written as it is.
    """
    texts: list[str] = []
    _gather(fields, texts)
    return texts


def request_detail(method: object, path: object, status_code: object) -> str:
    """Return the `detail` of an HTTP request as Feast writes it, whatever the arguments are."""
    try:
        return f"{method} {path} -> {status_code}"
    except Exception:  # raised by an object's own method, or for a number too long to write
        json = JsonValues(depth=1, items=1)
        return f"{json.key(method)} {json.key(path)} -> {json.key(status_code)}"


def given_or(value: Any, default: Any) -> Any:
    """Return the value, or the default if it is false. Keep an object whose truth cannot be told."""
    try:
        return value or default
    except Exception:
        return value


def word_of(value: Any) -> Any:
    """Return the plain word of a member of an enum, or of a class derived from `str`."""
    word = value.value if isinstance(value, enum.Enum) else value
    return str.__str__(word) if isinstance(word, str) else word


def time_ns_of(timestamp: str) -> int | None:
    """Return an ISO 8601 time with its zone in nanoseconds since 1970, or None if a record cannot hold it."""
    try:
        moment = datetime.fromisoformat(timestamp)
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, TypeError):  # not a time, or one without a zone
        return None
    time_ns = ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000
    return time_ns if 0 <= time_ns <= INT64_MAX else None


def _gather(fields: dict[str, Any], texts: list[str]) -> None:
    for key, value in fields.items():
        if isinstance(value, str):
            texts.append(value)
        elif value.__class__ is list:
            texts.extend(value)  # a value that is not a text cannot be joined: a TypeError too
        elif value.__class__ is dict:
            if key == "attributes":
                _gather_attributes(value, texts)
            else:
                _gather(value, texts)
        elif not _is_number(value):
            raise TypeError(f"{key}: expected a text, number, list or part, got {type(value).__name__}")


def _gather_attributes(attributes: dict[str, Any], texts: list[str]) -> None:
    texts.extend(attributes)
    for value in attributes.values():
        if isinstance(value, str):
            texts.append(value)
        elif value.__class__ is list:
            texts.extend(text for text in value if isinstance(text, str))


def _is_number(value: object) -> bool:
    kind = type(value)
    return kind is float or kind is bool or (kind is int and INT64_MIN <= value <= INT64_MAX)  # type: ignore[operator]  # an int


def _given(text: str | None) -> Text:
    return UNSET if text is None else text
