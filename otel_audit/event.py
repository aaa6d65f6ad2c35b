"""The audit event and its parts.

The first thirteen fields of `AuditEvent` are those of Feast's audit logger, in the same order and with the same
defaults, so that Feast's code and log files work unchanged. All other fields are optional and are left out of the line
when unset.

`as_event` makes an event of whatever a caller gives: ours, Feast's own, any object that gives its fields, or a mapping
with values of odd types.

The models stand on Pydantic, which takes longer to load than the rest of a service's audit logger. What needs no model
imports `event_schema`; what makes one imports this module where it makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import msgspec
from pydantic import BaseModel, Field, ValidationError

from otel_audit.event_schema import Outcome, PrincipalKind
from otel_audit.json_values import JsonValues

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = [
    "AuditAction",
    "AuditEvent",
    "AuditPrincipal",
    "AuditResource",
    "AuditSource",
    "Outcome",
    "PrincipalKind",
    "as_event",
    "fields_of",
]

Scalar = str | bool | int | float


_DEPTH: Final = 6
_ITEMS: Final = 1024


class _Lenient(BaseModel):
    """A model that accepts any value, since recording an event must not break the application it describes.

    A value of the wrong type becomes text if the field holds text; otherwise the field keeps its default. A value that
    is not a mapping sets the main field: `principal="ann"`.
    """

    _main_field: ClassVar[str] = ""

    if not TYPE_CHECKING:  # a type checker takes the parameters from the fields

        def __init__(self, /, **given: Any) -> None:
            build = self.__pydantic_validator__.validate_python  # what `super().__init__` calls, without its frame
            try:
                build(given, self_instance=self)
                return
            except ValidationError as error:
                fields = self._mended(given, error)
            except Exception:  # raised by a value's own methods; a JSON value has none that can fail
                fields = {name: _plain(value) for name, value in given.items()}
            try:
                build(fields, self_instance=self)
            except ValidationError as error:
                build(self._mended(fields, error), self_instance=self)

    @classmethod
    def _mended(cls, given: dict[str, Any], error: ValidationError) -> dict[str, Any]:
        """Return the fields with every invalid value replaced, or raise the error if a field is missing."""
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        if any(problem["type"] == "missing" for problem in problems):
            raise error
        fields = dict(given)
        for name, problem in {str(problem["loc"][0]): problem for problem in problems}.items():
            value = cls._fitting(name, fields.pop(name), problem)
            if value is None and cls.model_fields[name].is_required():
                value = "unknown"
            if value is not None:
                fields[name] = value
        return fields

    @classmethod
    def _fitting(cls, name: str, value: Any, problem: ErrorDetails) -> Any:
        """Return a value of the right type for the field, or None if only the default will do."""
        kind = problem["type"]
        if name == "attributes":
            return _flat(value)
        if value is None:
            return None
        if kind == "model_type":
            part: Any = cls.model_fields[name].annotation
            return part._of(value)
        if len(problem["loc"]) > 1:  # an item of a list
            return [_text(item) for item in value]
        if kind == "list_type":
            return [_text(value)]
        return _text(value) if kind.startswith("string") else None

    @classmethod
    def _of(cls, value: Any) -> Self:
        """Return this part, built from a mapping, from another library's model or from a text for the main field."""
        with suppress(Exception):  # the object is the caller's, and may fail in any way
            return cls(**(value if isinstance(value, Mapping) else value.model_dump()))
        return cls(**{cls._main_field: _text(value)})


def _flat(attributes: Any) -> dict[str, Any] | None:
    plain = _plain(attributes)
    if plain is None:
        return None
    flat = plain if type(plain) is dict else {"value": plain}
    return {
        key: [_scalar(item) for item in value] if type(value) is list else _scalar(value)
        for key, value in flat.items()
        if value is not None
    }


def _scalar(value: Any) -> Any:
    return _json(value) if value is None or type(value) in (list, dict) else value


def _text(value: Any) -> str:
    plain = _plain(value)
    return plain if type(plain) is str else _json(plain)


def _plain(value: Any) -> Any:
    return JsonValues(depth=_DEPTH, items=_ITEMS).of_field(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class AuditPrincipal(_Lenient):
    """The actor. Only `id` and `issuer` identify it, since users may be free to choose their own `username`.

    The fields from `id` on are ours. Source: OpenID Connect Core 1.0, section 5.7: `sub` and `iss`.
    """

    _main_field = "username"

    username: str = ""
    roles: list[str] = Field(default_factory=list)
    auth_type: str = ""
    id: str | None = None
    issuer: str | None = None
    kind: PrincipalKind | None = None
    on_behalf_of: str | None = None


class AuditSource(_Lenient):
    """The origin of a request. `user_agent` is ours."""

    _main_field = "ip"

    ip: str = ""
    transport: str = ""
    user_agent: str | None = None


class AuditAction(_Lenient):
    """The requested action. `verb` (READ, CREATE, ...), `method` and `arguments_digest` (hex SHA-256) are ours."""

    _main_field = "path"

    mcp_tool: str = ""
    path: str = ""
    verb: str | None = None
    method: str | None = None
    arguments_digest: str | None = None


class AuditResource(_Lenient):
    """The object of the action."""

    _main_field = "name"

    type: str = ""
    name: str = ""
    actions: list[str] = Field(default_factory=list)


class AuditEvent(_Lenient):
    """One audit event: who did what, when, and how it ended.

    As in Feast, the model is mutable and ignores unknown fields. `event_type` and `outcome` are free text, stored as
    given.

    Source: Feast 0.67 `audit_logger.AuditEvent`; the fields from `event_id` on are ours, after OTEP 0267.
    """

    event_type: str
    timestamp: str = ""
    request_id: str = ""
    trace_id: str | None = None
    span_id: str | None = None
    jsonrpc_id: str | None = None
    principal: AuditPrincipal = Field(default_factory=AuditPrincipal)
    source: AuditSource = Field(default_factory=AuditSource)
    action: AuditAction = Field(default_factory=AuditAction)
    resource: AuditResource = Field(default_factory=AuditResource)
    outcome: str = ""
    duration_ms: float | None = None
    detail: str = ""
    event_id: str | None = Field(default=None, description="UUIDv7 of the event; made by the logger when unset.")
    trace_flags: int | None = Field(default=None, description="W3C trace flags of the active span.")
    status_code: int | None = Field(default=None, description="HTTP status code of the answer.")
    error_type: str | None = Field(default=None, description="Class name of the exception.")
    reason: str | None = Field(default=None, description="Why it was allowed or denied.")
    policy_id: str | None = Field(default=None, description="The rule that allowed or denied.")
    parent_id: str | None = Field(default=None, description="`event_id` of the event that this one belongs to.")
    attributes: dict[str, Scalar | list[Scalar]] | None = Field(
        default=None, description="Facts of your own: flat, scalar or list values."
    )
    tags: list[str] | None = Field(
        default=None, description="Words to find the event by, such as `privileged`; a rule of the policy adds its own."
    )
    redacted: list[str] | None = Field(default=None, description="Paths whose value was removed as a secret.")
    truncated: list[str] | None = Field(default=None, description="Paths whose value was cut to its cap.")

    def to_jsonl(self) -> str:
        """Return the event as one compact JSON object without its unset fields.

        An event that sets only Feast's fields gives the same bytes as in Feast.
        """
        return self.model_dump_json(exclude_none=True)


_ITEMS_OF_FOREIGN: Final = 64
_UNREAD: Final = "the event's fields could not be read"


def as_event(given: Any) -> AuditEvent:
    """Return an event for anything that a caller passes. This never raises, so a bad value never costs the event.

    `given` is an `AuditEvent` (returned as it is if its parts have the right types), an object with `model_dump()`, or
    a mapping of fields. It is not changed. A value of the wrong type becomes its text, or the default. Nested
    `attributes` are kept, since the redactor flattens them.
    """
    if type(given) is AuditEvent and _is_as_declared(given):
        return given
    try:
        fields = _with_plain_parts(given if isinstance(given, Mapping) else _plain_part(given))
    except Exception:  # not an event, or one whose methods raise
        return AuditEvent(event_type="unknown", detail=f"expected an event, got {_short_text(type(given).__name__)}")
    try:
        return _validated(fields)
    except Exception:  # raised by a value's own methods, or by a list that is validated item by item
        return _simplified(fields)


def fields_of(event: AuditEvent) -> dict[str, Any]:
    """Return the fields of an event that are set, in the order and with the types of the model.

    Nested `attributes` are an exception, since the redactor flattens them.
    """
    try:
        # This is what `model_dump` calls, without the cost of its arguments: every event passes here.
        fields: dict[str, Any] = event.__pydantic_serializer__.to_python(event, exclude_none=True, warnings="error")
        return fields
    except Exception:  # a value has the wrong type
        mended = as_event(_set_fields(event))
    try:
        return mended.model_dump(exclude_none=True, warnings=False)
    except Exception:  # a value that cannot be dumped, such as an object that contains itself
        return _with_plain_parts(_set_fields(mended))


def _is_as_declared(event: AuditEvent) -> bool:
    """Return True if the fields that the logger reads have their types.

    A model accepts any assignment once it is made.
    """
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
        with suppress(Exception):  # an object that cannot give its fields is left for `_validated` to replace
            plain[key] = _plain_part(value)
    return plain


def _plain_part(part: Any) -> Any:
    """Return a model as a new dict, and anything else unchanged."""
    if isinstance(part, BaseModel):
        return _set_fields(part)
    return part.model_dump() if hasattr(part, "model_dump") else part


def _validated(fields: dict[str, Any]) -> AuditEvent:
    """Return the event with its attributes as given, since the redactor knows the names in nested ones."""
    event = AuditEvent.model_validate({"event_type": "unknown", **fields, "attributes": None})
    event.attributes = fields.get("attributes")
    return event


def _short_text(value: Any) -> str:
    converted = JsonValues(depth=_DEPTH, items=_ITEMS_OF_FOREIGN).of_field(value)
    return converted if type(converted) is str else msgspec.json.encode(converted).decode()


def _simplified(fields: Mapping[str, Any]) -> AuditEvent:
    """Return an event whose values are all plain JSON values, since those have no methods that can raise."""
    json = JsonValues(depth=_DEPTH, items=_ITEMS_OF_FOREIGN)
    plain = {json.key(key): json.of_field(value) for key, value in fields.items()}
    try:
        return _validated(plain)
    except Exception:
        return AuditEvent(event_type=_short_text(plain.get("event_type", "unknown")), detail=_UNREAD)


def _build_each_once() -> None:
    """Have pydantic-core make what it keeps for the first models that it builds and dumps, with no other thread inside.

    It does that under locks of its own. A child that is forked while another thread holds one would wait for it for
    ever, in the first event that it builds.
    """
    mended: dict[str, Any] = {"event_type": 0, "principal": {"roles": None}, "action": "", "resource": b"", "source": 1}
    event = AuditEvent(**mended, attributes={"": [1.5]})
    event.to_jsonl()
    for each in (event, AuditEvent.model_construct(outcome=1)):
        fields_of(each)


_build_each_once()
