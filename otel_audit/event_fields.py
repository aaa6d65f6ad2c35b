"""An `AuditEvent` of whatever came in: ours, Feast's own, any object that gives its fields, or fields of odd types."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from pydantic import BaseModel, ValidationError

from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.redaction.json_values import JsonValues

__all__ = ["as_event", "fields_of"]

Address = tuple[int | str, ...]

# Where a text goes that stands in the place of a whole part: `principal="ann"`.
_MAIN_FIELD: Final = {"principal": "username", "source": "ip", "action": "path", "resource": "name"}
_DEPTH, _ITEMS = 6, 64
_UNREAD: Final = "the event's fields could not be read"


def as_event(given: Any) -> AuditEvent:
    """The event, never a reason to lose it: a value of the wrong type becomes its text, or its default. Never raises.

    `given` is an `AuditEvent` (returned as it is if its parts are of their types), an object with `model_dump()`, or a
    mapping of fields. Nothing of it is changed. `attributes` that are not flat are kept: the redactor makes them flat.
    """
    if type(given) is AuditEvent and _is_as_declared(given):
        return given
    try:
        fields = _with_plain_parts(given if isinstance(given, Mapping) else _plain(given))
    except Exception:  # not an event at all, or one whose methods raise
        return AuditEvent(event_type="unknown", detail=f"expected an event, got {_text(type(given).__name__)}")
    try:
        return AuditEvent.model_validate(fields)
    except ValidationError as error:
        return _mended(fields, error)
    except Exception:  # of a value's own methods
        return _last_resort(fields)


def fields_of(event: AuditEvent) -> dict[str, Any]:
    """The fields of an event that are set, in the order of the model. What was assigned later may be of any type."""
    try:
        return event.model_dump(exclude_none=True, warnings=False)
    except Exception:  # a value that cannot be dumped, such as an object that holds itself
        return _with_plain_parts({key: value for key, value in event.__dict__.items() if value is not None})


def _is_as_declared(event: AuditEvent) -> bool:
    """Whether what the logger reads is of its type: a model can be assigned anything after it was made."""
    resource, action = event.resource, event.action
    return (
        isinstance(event.event_type, str)
        and isinstance(event.outcome, str)
        and isinstance(event.timestamp, str)
        and isinstance(event.request_id, str)
        and (event.event_id is None or isinstance(event.event_id, str))
        and isinstance(event.principal, AuditPrincipal)
        and isinstance(event.source, AuditSource)
        and isinstance(action, AuditAction)
        and isinstance(action.mcp_tool, str)
        and isinstance(resource, AuditResource)
        and type(resource.actions) is list
        and all(isinstance(each, str) for each in resource.actions)
    )


def _with_plain_parts(fields: Mapping[str, Any]) -> dict[str, Any]:
    plain = dict(fields)
    for key, value in plain.items():
        with contextlib.suppress(Exception):  # an object that cannot give its fields stays as it is, to be mended
            plain[key] = _plain(value)
    return plain


def _plain(part: Any) -> Any:
    """A model as a new dict, anything else as it is."""
    if isinstance(part, BaseModel):
        return {key: value for key, value in part.__dict__.items() if value is not None}
    return part.model_dump() if hasattr(part, "model_dump") else part


def _mended(fields: dict[str, Any], error: ValidationError) -> AuditEvent:
    """The event with each wrong value made a text where a text is wanted, and left to its default elsewhere."""
    attributes = None
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        path, kind = problem["loc"], problem["type"]
        if path[0] == "attributes":
            attributes = fields.pop("attributes", attributes)
        elif kind == "model_type" and path[0] in _MAIN_FIELD:
            fields[path[0]] = {_MAIN_FIELD[str(path[0])]: _text(fields[path[0]])}
        else:
            fields = _replaced(fields, path, kind)
    fields.setdefault("event_type", "unknown")
    try:
        event = AuditEvent.model_validate(fields)
    except Exception:
        return _last_resort(fields)
    if attributes is not None:
        event.attributes = attributes
    return event


def _replaced(value: Any, path: Address, kind: str) -> Any:
    """A copy of a dict or list in which the value at the path is what its model takes."""
    step, rest = path[0], path[1:]
    copy: Any = dict(value) if isinstance(value, Mapping) else list(value)
    if rest:
        copy[step] = _replaced(copy[step], rest, kind)
    elif kind == "list_type" and isinstance(copy[step], str):
        copy[step] = [copy[step]]
    elif kind == "string_type" and (copy[step] is not None or isinstance(step, int)):
        copy[step] = _text(copy[step])
    else:
        copy.pop(step, None)
    return copy


def _text(value: Any) -> str:
    converted = JsonValues(depth=_DEPTH, items=_ITEMS).of_field(value)
    return converted if type(converted) is str else msgspec.json.encode(converted).decode()


def _last_resort(fields: Mapping[str, Any]) -> AuditEvent:
    return AuditEvent(event_type=_text(fields.get("event_type", "unknown")), detail=_UNREAD)
