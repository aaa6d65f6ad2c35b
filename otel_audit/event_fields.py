"""An `AuditEvent` of whatever came in: ours, Feast's own, any object that gives its fields, or fields of odd types."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from pydantic import BaseModel

from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.json_values import JsonValues

__all__ = ["as_event", "fields_of"]

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
        return _validated(fields)
    except Exception:  # of a value's own methods, or of a list that is given item by item
        return _simplified(fields)


def fields_of(event: AuditEvent) -> dict[str, Any]:
    """The fields of an event that are set, in the order of the model, of its types whatever was assigned later.

    `attributes` that are not flat are an exception: the redactor makes them flat.
    """
    try:
        # What `model_dump` calls, without the cost of its own arguments: this is on every event's path.
        fields: dict[str, Any] = event.__pydantic_serializer__.to_python(event, exclude_none=True, warnings="error")
        return fields
    except Exception:  # a value is not of its type
        mended = as_event(_set_fields(event))
    try:
        return mended.model_dump(exclude_none=True, warnings=False)
    except Exception:  # a value that cannot be dumped, such as an object that holds itself
        return _with_plain_parts(_set_fields(mended))


def _is_as_declared(event: AuditEvent) -> bool:
    """Whether what the logger reads is of its type: a model can be assigned anything after it was made."""
    try:
        resource, action = event.resource, event.action
        return (
            type(event.event_type) is str
            and type(event.outcome) is str
            and type(event.timestamp) is str
            and type(event.request_id) is str
            and (event.event_id is None or type(event.event_id) is str)
            and isinstance(event.principal, AuditPrincipal)
            and isinstance(event.source, AuditSource)
            and isinstance(action, AuditAction)
            and type(action.mcp_tool) is str
            and isinstance(resource, AuditResource)
            and type(resource.actions) is list
            and all(type(each) is str for each in resource.actions)
        )
    except AttributeError:  # `model_construct` leaves fields out
        return False


def _set_fields(model: BaseModel) -> dict[str, Any]:
    return {key: value for key, value in model.__dict__.items() if value is not None}


def _with_plain_parts(fields: Mapping[str, Any]) -> dict[str, Any]:
    plain = dict(fields)
    for key, value in plain.items():
        with contextlib.suppress(Exception):  # an object that cannot give its fields stays as it is, to be mended
            plain[key] = _plain(value)
    return plain


def _plain(part: Any) -> Any:
    """A model as a new dict, anything else as it is."""
    if isinstance(part, BaseModel):
        return _set_fields(part)
    return part.model_dump() if hasattr(part, "model_dump") else part


def _validated(fields: dict[str, Any]) -> AuditEvent:
    """The event, with its attributes as they were given: the redactor knows names in what is not flat yet."""
    event = AuditEvent.model_validate({"event_type": "unknown", **fields, "attributes": None})
    event.attributes = fields.get("attributes")
    return event


def _text(value: Any) -> str:
    converted = JsonValues(depth=_DEPTH, items=_ITEMS).of_field(value)
    return converted if type(converted) is str else msgspec.json.encode(converted).decode()


def _simplified(fields: Mapping[str, Any]) -> AuditEvent:
    """The event of fields in which every value is one of JSON: no other has methods that may raise."""
    json = JsonValues(depth=_DEPTH, items=_ITEMS)
    plain = {json.key(key): json.of_field(value) for key, value in fields.items()}
    try:
        return _validated(plain)
    except Exception:
        return AuditEvent(event_type=_text(plain.get("event_type", "unknown")), detail=_UNREAD)
