"""Write a line of the journal as an event of OCSF, for a SIEM that reads it.

Each fact of a line is taken out as it is mapped. The rest becomes `unmapped`, so that no fact is lost, even one of an
odd type. The SHA-256 of the line is `raw_data_hash`, which leads from the SIEM back to the journal and to the proof of
the line.

Source: OCSF 1.8.0, classes `http_activity` (4002), `api_activity` (6003), `authentication` (3002), `authorize_session`
(3003) and `base_event` (0), profiles `host`, `trace` and `security_control`. docs/ocsf.md has the mapping as a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit.event_schema import Outcome
from otel_audit.records.encoding import UnreadableLine
from otel_audit.records.facts import HttpFacts, action_of, http_facts_of, verdict_of

__all__ = ["OCSF_VERSION", "ocsf_event"]

OCSF_VERSION: Final = "1.8.0"

_OTHER: Final = 99


class _Class(NamedTuple):
    """A class of OCSF with its category."""

    uid: int
    name: str
    category_uid: int
    category_name: str


_BASE: Final = _Class(0, "Base Event", 0, "Uncategorized")
_HTTP: Final = _Class(4002, "HTTP Activity", 4, "Network Activity")
_API: Final = _Class(6003, "API Activity", 6, "Application Activity")
_AUTHENTICATION: Final = _Class(3002, "Authentication", 3, "Identity & Access Management")
_AUTHORIZATION: Final = _Class(3003, "Authorize Session", 3, "Identity & Access Management")

_METHODS: Final = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "TRACE", "PATCH")  # ids from 1
_VERBS: Final = ("CREATE", "READ", "UPDATE", "DELETE")
_USER_TYPES: Final = {"user": (1, "User"), "system": (3, "System"), "service": (4, "Service")}
_SEVERITIES: Final = {"INFO": (1, "Informational"), "WARN": (2, "Low"), "ERROR": (3, "Medium")}
_STATUSES: Final = {
    Outcome.SUCCESS: (1, "Success"),
    Outcome.FAILURE: (2, "Failure"),
    Outcome.DENIED: (2, "Failure"),
    Outcome.ERROR: (2, "Failure"),
    Outcome.CANCELLED: (_OTHER, "Cancelled"),
    Outcome.UNKNOWN: (0, "Unknown"),
}
_DECISIONS: Final = {Outcome.SUCCESS: (1, "Allowed"), Outcome.DENIED: (2, "Denied")}
_INT32_MAX: Final = 2**31 - 1
_decode: Final[Callable[[bytes], Any]] = msgspec.json.Decoder().decode


class _Facts:
    """The facts of one event. Taking one removes it."""

    def __init__(self, event: dict[str, Any]) -> None:
        self._event = event

    def text(self, *path: str) -> str:
        """Take a text. It is empty if there is none."""
        return self._take(path, lambda value: type(value) is str) or ""

    def whole(self, *path: str) -> int | None:
        """Take a whole number."""
        number: int | None = self._take(path, lambda value: type(value) is int)
        return number

    def texts(self, *path: str) -> list[str]:
        """Take a list of texts, none of which is empty."""
        return (
            self._take(path, lambda value: type(value) is list and all(type(each) is str and each for each in value))
            or []
        )

    def rest(self) -> dict[str, Any]:
        """Return the facts that nobody took, without empty ones."""
        left: dict[str, Any] = _told(self._event) or {}
        return left

    def _take(self, path: tuple[str, ...], fits: Callable[[Any], bool]) -> Any:
        holder: Any = self._event
        for step in path[:-1]:
            holder = holder.get(step) if type(holder) is dict else None
        if type(holder) is not dict or not fits(value := holder.get(path[-1])):
            return None
        del holder[path[-1]]
        return value


def ocsf_event(line: bytes, service: str) -> dict[str, Any]:
    """Return the event of a journal line. `service` is the name of its writer, or empty if unknown.

    Raises:
        UnreadableLine: it is not an event.
    """
    event = _event_of(line)
    verdict, http = verdict_of(event.get("outcome")), http_facts_of(event)
    facts, event_type = _Facts(event), event["event_type"]
    kind = _class_of(event_type, event)
    verb = action_of(event, http.method)
    facts.text("event_type")
    request_id = facts.text("request_id")
    time_ns, observed_ns = facts.whole("time_ns"), facts.whole("observed_ns")
    severity_id, severity = _SEVERITIES[verdict.severity_text]
    status_id, status = _STATUSES[verdict.result]
    made: dict[str, Any] = {
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "time": (time_ns or observed_ns or 0) // 10**6,
        "message": facts.text("detail"),
        "status_detail": facts.text("reason"),
    }
    metadata: dict[str, Any] = {
        "version": OCSF_VERSION,
        "product": {"name": "otel-audit"},
        "uid": facts.text("event_id"),
        "event_code": event_type,
        "correlation_uid": request_id,
        "original_time": facts.text("timestamp"),
        "logged_time": None if observed_ns is None else observed_ns // 10**6,
        "log_provider": service,
        "log_name": facts.text("stream_id"),
        "sequence": facts.whole("seq"),
        "labels": facts.texts("tags"),
    }
    duration_ms = event.get("duration_ms")  # the exact one is unmapped
    if isinstance(duration_ms, int | float) and 0 <= duration_ms <= _INT32_MAX:
        made["duration"] = round(duration_ms)
    profiles: list[str] = []
    if kind is _HTTP:
        activity_id, activity = _http(made, facts, http, profiles)
    elif kind is _API:
        activity_id, activity = _api(made, facts, event_type, verb, request_id, service)
    elif kind is _AUTHENTICATION:
        activity_id, activity = _authentication(made, facts, verb, service)
    elif kind is _AUTHORIZATION:
        activity_id, activity = _authorization(made, facts, verb, verdict.result, profiles)
    else:
        activity_id, activity = _OTHER, event_type
    if kind is not _BASE:
        _request(made, facts, http, service, is_required=kind is _HTTP)
    if kind in (_HTTP, _API) and (trace_id := facts.text("trace_id")):
        made["trace"] = {"uid": trace_id}  # a span there needs its start and end
        profiles.append("trace")
    metadata["profiles"] = sorted(profiles)
    return {
        "class_uid": kind.uid,
        "class_name": kind.name,
        "category_uid": kind.category_uid,
        "category_name": kind.category_name,
        "activity_id": activity_id,
        "activity_name": activity,
        "type_uid": kind.uid * 100 + activity_id,
        "type_name": f"{kind.name}: {activity}",
        **_without_the_empty(made),
        "metadata": _without_the_empty(metadata),
        "raw_data_hash": {"algorithm_id": 3, "algorithm": "SHA-256", "value": hashlib.sha256(line).hexdigest()},
        "unmapped": facts.rest(),
    }


def _event_of(line: bytes) -> dict[str, Any]:
    try:
        event = _decode(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableLine(f"expected a JSON object in UTF-8, got {type(error).__name__} - at `$`") from error
    if type(event) is not dict or type(event.get("event_type")) is not str:
        raise UnreadableLine("expected an object with a text as event type - at `$.event_type`")
    return event


def _class_of(event_type: str, event: Mapping[str, Any]) -> _Class:
    """Return the class of an event. An application's own types are calls of its API."""
    if "system" in event or "otlp" in event:  # the journal's own events, and log records of other programs
        return _BASE
    if event_type in ("http.request", "websocket.session"):
        return _HTTP
    if event_type.startswith("authn."):
        return _AUTHENTICATION
    return _AUTHORIZATION if event_type.startswith("authz.") else _API


def _http(made: dict[str, Any], facts: _Facts, http: HttpFacts, profiles: list[str]) -> tuple[int, str]:
    if user := _user(facts):
        made["actor"] = {"user": user}
        profiles.append("host")
    if http.method in _METHODS:
        return _METHODS.index(http.method) + 1, http.method.capitalize()
    return (_OTHER, http.method) if http.method else (0, "Unknown")


def _api(
    made: dict[str, Any], facts: _Facts, event_type: str, verb: str, request_id: str, service: str
) -> tuple[int, str]:
    operation = facts.text("action", "mcp_tool") or event_type
    api: dict[str, Any] = {"operation": operation}
    if service:
        api["service"] = {"name": service}
    if request_id:
        api["request"] = {"uid": request_id}
    if error := facts.text("error_type"):
        api["response"] = {"error": error}
    made["api"] = api
    made["actor"] = {"user": _user(facts) or _nobody()}
    made["src_endpoint"] = _endpoint(facts) or {"svc_name": service or "unknown"}
    if name := facts.text("resource", "name"):
        made["resources"] = [_without_the_empty({"name": name, "type": facts.text("resource", "type")})]
    facts.text("action", "verb")
    return (_VERBS.index(verb) + 1, verb.capitalize()) if verb in _VERBS else (_OTHER, verb)


def _authentication(made: dict[str, Any], facts: _Facts, verb: str, service: str) -> tuple[int, str]:
    made["user"] = _user(facts) or _nobody()
    made["service"] = {"name": service or "unknown"}
    if protocol := facts.text("principal", "auth_type"):
        made |= {"auth_protocol_id": _OTHER, "auth_protocol": protocol}
    return (2, "Logoff") if verb == "LOGOUT" else (1, "Logon")


def _authorization(
    made: dict[str, Any], facts: _Facts, verb: str, result: Outcome, profiles: list[str]
) -> tuple[int, str]:
    """Map a decision. The class knows only the assignment of privileges, so this is another activity."""
    made["user"] = _user(facts) or _nobody()
    made["privileges"] = facts.texts("resource", "actions") or [verb]
    made["action_id"], made["action"] = _DECISIONS.get(result, (0, "Unknown"))
    policy = facts.text("policy_id")
    made["authorizations"] = [{"decision": made["action"], **({"policy": {"uid": policy}} if policy else {})}]
    profiles.append("security_control")
    return _OTHER, "Decision"


def _request(made: dict[str, Any], facts: _Facts, http: HttpFacts, service: str, *, is_required: bool) -> None:
    """Map the origin of the event, and the HTTP request that it belongs to."""
    if "src_endpoint" not in made and (source := _endpoint(facts)):
        made["src_endpoint"] = source
    if service:
        made["dst_endpoint"] = {"svc_name": service}
    request: dict[str, Any] = {"user_agent": facts.text("source", "user_agent")}
    if http.method in _METHODS:
        facts.text("action", "method")
        request["http_method"] = http.method
    if http.path:
        request["url"] = {"path": http.path}
    request = _without_the_empty(request)
    if request or is_required:
        made["http_request"] = request
    if http.status_code is not None:
        facts.whole("status_code")
        made |= {"http_response": {"code": http.status_code}, "status_code": str(http.status_code)}


def _user(facts: _Facts) -> dict[str, Any]:
    """Return the actor, or an empty object if nobody is named. Roles are its groups."""
    user: dict[str, Any] = {"name": facts.text("principal", "username"), "uid": facts.text("principal", "id")}
    user = _without_the_empty(user)
    if not user:
        return {}
    if domain := facts.text("principal", "issuer"):
        user["domain"] = domain
    if roles := facts.texts("principal", "roles"):
        user["groups"] = [{"name": role, "type": "role"} for role in roles]
    user["type_id"], user["type"] = _USER_TYPES.get(facts.text("principal", "kind"), (0, "Unknown"))
    return user


def _nobody() -> dict[str, Any]:
    return {"name": "anonymous", "type_id": 0, "type": "Unknown"}


def _endpoint(facts: _Facts) -> dict[str, Any]:
    said = facts.text("source", "ip")
    try:
        address = ip_address(said) if said else None
    except ValueError:  # such as the pseudonym of an address, or the path of a socket
        return {"name": said}
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address  # which Python 3.13 writes differently from earlier versions
    return {"ip": str(address)} if address else {}


def _without_the_empty(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value != "" and value != []}


def _told(value: Any) -> Any:
    """Return a value without empty entries in its objects, or None if nothing is left."""
    if type(value) is dict:
        kept = {name: left for name, each in value.items() if (left := _told(each)) is not None}
        return kept or None
    return None if value in ("", []) else value
