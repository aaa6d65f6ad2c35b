"""Turn the facts of an event into attributes of its record: choose their keys, and keep as many as fit.

Nothing here raises. A value that its attribute cannot hold is left out; it is still in the body of the record, which is
the journal line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit.records import attributes as keys
from otel_audit.records.facts import HttpFacts, Verdict, action_of, actor_id_of, actor_type_of, http_facts_of, part_of

__all__ = [
    "DURATION",
    "KEPT",
    "MCP_METHODS",
    "OWN_TEXTS",
    "SURELY_FITS_BYTES",
    "AttributeValue",
    "Found",
    "SegmentMapping",
    "actor_attributes",
    "attribute_value",
    "kind_attributes",
    "kind_of",
    "plain_attributes",
]

AttributeValue = str | bool | int | float | list[str] | list[bool] | list[int] | list[float]

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_encode: Final = msgspec.json.Encoder().encode


_KNOWN_METHODS: Final = frozenset(
    # Source: OTel semantic conventions, "http.request.method"; any other is `_OTHER`.
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
MCP_METHODS: Final = {
    "mcp.tools.call": "tools/call",
    "mcp.resources.read": "resources/read",
    "mcp.prompts.get": "prompts/get",
}


def attribute_value(value: object) -> AttributeValue | None:
    """Return the value in a form that an attribute can hold, or None if there is none.

    There is none for null, an object, a nested list or a number beyond int64. The items of a mixed list become their
    JSON texts, or doubles if all are numbers, since the SDK drops such lists.
    """
    if isinstance(value, list | tuple):
        return _list_value(list(value))
    return value if _is_scalar(value) else None  # type: ignore[return-value]  # narrowed by `_is_scalar`


def _is_scalar(value: object) -> bool:
    kind = type(value)
    return kind is str or kind is bool or kind is float or (kind is int and _INT64_MIN <= value <= _INT64_MAX)  # type: ignore[operator]  # an int


def _list_value(items: list[Any]) -> AttributeValue | None:
    if not all(map(_is_scalar, items)):
        return None
    kinds = set(map(type, items))
    if len(kinds) <= 1:
        return items
    if kinds == {int, float}:
        return [float(item) for item in items]
    return [item if type(item) is str else msgspec.json.encode(item).decode() for item in items]


def plain_attributes(values: object) -> dict[str, AttributeValue]:
    """Return the part of a JSON object that the SDK accepts as attributes of a resource or a scope."""
    pairs = values.items() if isinstance(values, Mapping) else ()
    held = ((key, attribute_value(value)) for key, value in pairs if key and isinstance(key, str))
    return {key: value for key, value in held if value is not None}


def _texts(value: object) -> bool:
    return type(value) is list and set(map(type, value)) == {str}


_Rows = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def _direct(type_: keys.ValueType, *, repeats: bool) -> _Rows:
    """Return rows of the table as (part, ((field, key), ...)). The event itself is the part ``, and comes last."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for row in keys.ATTRIBUTES:
        if row.direct and row.type is type_ and row.repeats is repeats:
            part, _, name = row.field.rpartition(".")
            rows.setdefault(part, []).append((name, row.key))
    return tuple((part, tuple(fields)) for part, fields in sorted(rows.items(), reverse=True))


_ACTOR: Final = "principal"


def _parted(rows: _Rows) -> tuple[_Rows, _Rows]:
    """Return the rows of the actor, and those of the kind of event."""
    return tuple(row for row in rows if row[0] == _ACTOR), tuple(row for row in rows if row[0] != _ACTOR)


_ACTOR_TEXTS, _KIND_TEXTS = _parted(_direct(keys.ValueType.STRING, repeats=True))
_ACTOR_LISTS, _KIND_LISTS = _parted(_direct(keys.ValueType.STRINGS, repeats=True))
OWN_TEXTS: Final = _direct(keys.ValueType.STRING, repeats=False)
"""The texts that are of one record alone, as (part, ((field, key), ...)), in the order of its attributes."""
DURATION: Final = "audit.duration_ms"
KEPT: Final = (keys.HTTP_ROUTE, keys.CLAIMED_REQUEST_ID, keys.TRACEPARENT)
"""Keys of the table that an event has among its own `attributes`."""
_MANDATORY: Final = (keys.RECORD_ID, keys.ACTOR_ID, keys.ACTOR_TYPE, keys.ACTION, keys.OUTCOME)


def _folded(key: str) -> str:
    """Return the key as Loki stores it, where two keys that differ only in dots would overwrite each other."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", key)


_OURS: Final = frozenset(_folded(row.key) for row in keys.ATTRIBUTES) | keys.STORE_FIELDS

SURELY_FITS_BYTES: Final = 8 * 1024
"""A line this short cannot have attributes beyond the limit: a value takes at most four times the bytes that it has in
the line (one-digit numbers in a list, counted as 8 each), and keys, prefixes and constants are below 12 KiB."""


class Found(NamedTuple):
    """The attributes of one record: first those whose values repeat from record to record, then its own.

    `left_out` counts those for which there was no room, or no value that an attribute can hold.
    """

    repeating: dict[str, AttributeValue]
    own: dict[str, AttributeValue]
    left_out: int


class SegmentMapping:
    """The mapping for the lines of one segment. The part that its header determines is worked out once."""

    __slots__ = ("_constants_bytes", "_reserved", "constants")

    def __init__(self, resource: Mapping[str, AttributeValue]) -> None:
        self.constants: dict[str, AttributeValue] = {keys.SCHEMA: keys.SCHEMA_VERSION}
        instance = resource.get("service.instance.id")
        if instance and isinstance(instance, str):
            self.constants[keys.SOURCE_ID] = _cut(instance)
            self.constants[keys.SOURCE_TYPE] = "service"
        self._constants_bytes = sum(len(key) + _size(value) for key, value in self.constants.items())
        self._reserved = _OURS | {_folded(key) for key in resource}

    def attributes(self, event: Mapping[str, Any], verdict: Verdict, line_bytes: int) -> Found:
        """Return the attributes of a record besides `constants`, at most 64 and 48 KiB in all.

        The mandatory ones always fit. When room runs out, the event's own `attributes` are left out first, then
        `audit.detail`. `line_bytes` is the length of the line of the event.
        """
        http = http_facts_of(event)
        repeating = {**kind_attributes(event, verdict, http), **actor_attributes(event)}
        found = Found(repeating, *self.own(event, http, len(repeating)))
        return found if line_bytes <= SURELY_FITS_BYTES else self._fitted(found)

    def own(self, event: Mapping[str, Any], http: HttpFacts, repeating: int) -> tuple[dict[str, AttributeValue], int]:
        """Return the attributes of a record besides `constants` and `repeating`, and how many were left out."""
        own = _own_attributes(event, http)
        given = event.get("attributes")
        if not given or type(given) is not dict:
            return own, 0
        return own, self._add_given(own, given, keys.MAX_ATTRIBUTES - len(self.constants) - repeating)

    def _add_given(self, own: dict[str, AttributeValue], given: dict[str, Any], room: int) -> int:
        taken: set[str] = set()
        left_out = 0
        for name, value in given.items():
            if name in KEPT and name in own:
                continue
            held = attribute_value(value)
            key = self._key_for(name, taken)
            if held is None or key is None or len(own) >= room:
                left_out += 1
                continue
            taken.add(_folded(key))
            own[key] = held
        return left_out

    def _key_for(self, name: str, taken: set[str]) -> str | None:
        """Return the attribute key for a name that the caller chose, or None if it would impersonate another fact."""
        if len(name) > keys.MAX_NAME_CHARS:
            return None
        folded = name.replace(".", "_")
        if (
            keys.KEY_PATTERN.fullmatch(name)
            and not folded.startswith("audit_")
            and folded not in self._reserved
            and folded not in taken
        ):
            return name
        key = keys.FREE_PREFIX + re.sub(r"[^a-z0-9_.]", "_", name.lower())
        return None if _folded(key) in taken else key

    def _fitted(self, found: Found) -> Found:
        room = keys.MAX_ATTRIBUTES_BYTES - self._constants_bytes
        everything: dict[str, AttributeValue] = {**found.repeating, **found.own}
        fitted: dict[str, Any] = {}
        for key in (*_MANDATORY, *(key for key in everything if key not in _MANDATORY)):
            value = everything[key]
            held = _cut(value) if isinstance(value, str) else value
            size = len(key) + _size(held)
            if size <= room:
                room -= size
                fitted[key] = held
        return Found(
            {key: fitted[key] for key in found.repeating if key in fitted},
            {key: fitted[key] for key in found.own if key in fitted},
            found.left_out + len(everything) - len(fitted),
        )


def kind_of(event: Mapping[str, Any], http: HttpFacts) -> bytes:
    """Return everything that `kind_attributes` and the event's name depend on. Equal bytes mean equal attributes.

    Raises:
        RecursionError: a value is nested too deeply.
    """
    action, resource = part_of(event, "action"), part_of(event, "resource")
    return _encode(
        (
            event["event_type"],
            event["stream_id"],
            event.get("outcome"),
            event.get("error_type"),
            action.get("verb"),
            action.get("mcp_tool"),
            resource.get("type"),
            resource.get("actions"),
            event.get("tags"),
            part_of(event, "source").get("transport"),
            http.method,
            http.status_code,
        )
    )


def kind_attributes(event: Mapping[str, Any], verdict: Verdict, http: HttpFacts) -> dict[str, AttributeValue]:
    """Return the attributes that take few values in a service. They depend only on `kind_of` the event."""
    event_type = event["event_type"]
    found: dict[str, AttributeValue] = {
        keys.ACTION: action_of(event, http.method),
        keys.OUTCOME: verdict.outcome,
        keys.RESULT: verdict.result.value,
        keys.SEQUENCE_STREAM_ID: event["stream_id"],
    }
    if http.method:
        _add_method(found, http.method)
    if http.status_code is not None:
        found[keys.HTTP_STATUS_CODE] = http.status_code
    if event_type in MCP_METHODS:
        found[keys.MCP_METHOD] = MCP_METHODS[event_type]
    _add_lists(found, event, _KIND_LISTS)
    _add_texts(found, event, _KIND_TEXTS)
    return found


def actor_attributes(event: Mapping[str, Any]) -> dict[str, AttributeValue]:
    """Return the attributes that depend only on the principal. Each user has their own, in all that they do."""
    principal = part_of(event, _ACTOR)
    found: dict[str, AttributeValue] = {
        keys.ACTOR_ID: actor_id_of(principal) or "anonymous",
        keys.ACTOR_TYPE: actor_type_of(principal),
    }
    _add_lists(found, event, _ACTOR_LISTS)
    _add_texts(found, event, _ACTOR_TEXTS)
    return found


def _add_method(to: dict[str, AttributeValue], method: str) -> None:
    if method in _KNOWN_METHODS:
        to[keys.HTTP_METHOD] = method
    else:
        to[keys.HTTP_METHOD] = "_OTHER"
        to[keys.HTTP_METHOD_ORIGINAL] = method


def _own_attributes(event: Mapping[str, Any], http: HttpFacts) -> dict[str, AttributeValue]:
    event_id = event.get("event_id")
    own: dict[str, AttributeValue] = {
        keys.RECORD_ID: event_id if event_id and type(event_id) is str else f"{event['stream_id']}:{event['seq']}",
        keys.SEQUENCE_NUMBER: event["seq"],
    }
    if http.path:
        own[keys.URL_PATH] = http.path
    if event["event_type"] in MCP_METHODS:
        _add_mcp(own, event)
    duration = event.get("duration_ms")
    if type(duration) is float or (type(duration) is int and abs(duration) <= 2**53):
        own[DURATION] = float(duration)
    given = event.get("attributes")
    if type(given) is dict:
        for key in KEPT:
            if key in given and type(value := given[key]) is str and value:
                own[key] = value
    _add_texts(own, event, OWN_TEXTS)
    return own


def _add_mcp(own: dict[str, AttributeValue], event: Mapping[str, Any]) -> None:
    name = part_of(event, "resource").get("name")
    match event["event_type"]:
        case "mcp.resources.read":
            uri = name or part_of(event, "action").get("path")
            if uri and type(uri) is str:
                own[keys.MCP_RESOURCE_URI] = uri
        case "mcp.prompts.get":
            if name and type(name) is str:
                own[keys.PROMPT_NAME] = name


def _add_lists(to: dict[str, AttributeValue], event: Mapping[str, Any], rows: _Rows) -> None:
    for part, fields in rows:
        values = part_of(event, part) if part else event
        for field, key in fields:
            if (value := values.get(field)) and _texts(value):
                to[key] = value


def _add_texts(to: dict[str, AttributeValue], event: Mapping[str, Any], rows: _Rows) -> None:
    for part, fields in rows:
        values = event.get(part) if part else event
        if type(values) is not dict:
            continue
        for field, key in fields:
            if (value := values.get(field)) and type(value) is str:
                to[key] = value


def _cut(text: str) -> str:
    if len(text) * 4 <= keys.MAX_TEXT_BYTES or _size(text) <= keys.MAX_TEXT_BYTES:
        return text
    return text.encode()[: keys.MAX_TEXT_BYTES - 3].decode(errors="ignore") + "…"


def _size(value: AttributeValue) -> int:
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, list):
        return sum(map(_size, value))
    return 8
