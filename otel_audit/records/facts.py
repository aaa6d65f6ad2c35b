"""Derive facts from an event: the verdict on its outcome, its verb, the kind of its actor, and its HTTP facts.

An event here is the JSON object of a journal line. Nothing in it can be trusted to have the right type, and nothing
here raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from otel_audit.event_schema import Outcome, PrincipalKind

__all__ = [
    "HttpFacts",
    "Verdict",
    "action_of",
    "actor_id_of",
    "actor_type_of",
    "http_facts",
    "http_facts_of",
    "part_of",
    "verdict_of",
]


def part_of(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the event's principal, source, action or resource. It is empty if missing or not an object."""
    part = event.get(name)
    return part if type(part) is dict else {}


class Verdict(msgspec.Struct, frozen=True):
    """The meaning of a stored outcome on a record: the derived outcome, the draft's word, and the severity."""

    result: Outcome
    outcome: str
    severity_number: int
    severity_text: str


_VERDICTS: Final = {
    # Source of the numbers: OTel logs data model, "Field: SeverityNumber".
    Outcome.SUCCESS: Verdict(Outcome.SUCCESS, "success", 9, "INFO"),
    Outcome.UNKNOWN: Verdict(Outcome.UNKNOWN, "unknown", 9, "INFO"),
    Outcome.FAILURE: Verdict(Outcome.FAILURE, "failure", 13, "WARN"),
    Outcome.DENIED: Verdict(Outcome.DENIED, "failure", 13, "WARN"),
    Outcome.CANCELLED: Verdict(Outcome.CANCELLED, "failure", 13, "WARN"),
    Outcome.ERROR: Verdict(Outcome.ERROR, "failure", 17, "ERROR"),
}


def verdict_of(word: object) -> Verdict:
    """Return the meaning of a stored outcome. An empty or unknown word, or none at all, is `unknown`.

    Source: the draft's three words for `outcome`; the severities are ours, since operators filter by them.
    """
    return _verdict_of_word(word if isinstance(word, str) else "")


@lru_cache(maxsize=64)
def _verdict_of_word(word: str) -> Verdict:
    return _VERDICTS[Outcome.of(word)]


_ACTION_BY_METHOD: Final = {
    "GET": "READ",
    "HEAD": "READ",
    "OPTIONS": "READ",
    "POST": "CREATE",
    "PUT": "UPDATE",
    "PATCH": "UPDATE",
    "DELETE": "DELETE",
}
_ACTION_BY_TYPE: Final = {
    "mcp.tools.call": "EXECUTE",
    "mcp.resources.read": "READ",
    "mcp.prompts.get": "READ",
    "authn.success": "LOGIN",
    "authn.failure": "LOGIN",
}


def action_of(event: Mapping[str, Any], method: str) -> str:
    """Return the verb for `audit.action`: the event's own, or the one of its type, or `EXECUTE` if neither is known.

    An `authz.decision` has the verb that was decided on: its own, or the only one in `resource.actions`.
    """
    verb = part_of(event, "action").get("verb")
    if verb and type(verb) is str:
        return verb
    event_type = event["event_type"]
    if event_type == "http.request":
        return _ACTION_BY_METHOD.get(method, "EXECUTE")
    if event_type == "authz.decision":
        return _only_action(event) or "EXECUTE"
    return _ACTION_BY_TYPE.get(event_type) or ("LOGIN" if event_type.startswith("authn.") else "EXECUTE")


def _only_action(event: Mapping[str, Any]) -> str:
    actions = part_of(event, "resource").get("actions")
    return actions[0] if type(actions) is list and len(actions) == 1 and type(actions[0]) is str else ""


_ACTOR_KINDS: Final = frozenset(kind.value for kind in PrincipalKind)


def actor_type_of(principal: Mapping[str, Any]) -> str:
    """Return `audit.actor.type`: the kind of the principal, or `user` if it has an id or a name, or `system`."""
    kind = principal.get("kind")
    if type(kind) is str and kind in _ACTOR_KINDS:
        return kind
    return "user" if actor_id_of(principal) else "system"


def actor_id_of(principal: Mapping[str, Any]) -> str:
    """Return the id of the actor, or its name, or an empty text if neither is known."""
    identity, name = principal.get("id"), principal.get("username")
    if identity and type(identity) is str:
        return identity
    return name if name and type(name) is str else ""


class HttpFacts(msgspec.Struct, frozen=True, gc=False):
    """Method, path and status of the request that an event is about. They are empty or None if unknown."""

    method: str = ""
    path: str = ""
    status_code: int | None = None


def http_facts_of(event: Mapping[str, Any]) -> HttpFacts:
    """Return the explicit fields. For an `http.request` without them, read a `detail` like `METHOD path -> status`.

    Source: Feast 0.67 `AuditLogger.log_http_request`, whose `detail` is the only place that has method and status.
    """
    action, status = part_of(event, "action"), event.get("status_code")
    method, path = action.get("method"), action.get("path")
    return http_facts(
        event["event_type"],
        method if type(method) is str else "",
        path if type(path) is str else "",
        status if type(status) is int and 100 <= status <= 599 else None,
        event.get("detail"),
    )


def http_facts(event_type: str, method: str, path: str, status: int | None, detail: object) -> HttpFacts:
    """Do what `http_facts_of` does with fields that have the right types. `status` is from 100 to 599."""
    if event_type == "http.request":
        if not (method and path and status):
            said = _said_in(detail)
            method, path, status = method or said.method, path or said.path, status or said.status_code
    elif not path.startswith("/"):
        path = ""  # the URI of an MCP resource, or a name, and not the path of a URL
    return HttpFacts(method, path.partition("?")[0] if "?" in path else path, status)


_NOTHING_SAID = HttpFacts()


def _said_in(detail: object) -> HttpFacts:
    if type(detail) is not str:
        return _NOTHING_SAID
    request, arrow, status = detail.rpartition(" -> ")
    method, space, path = request.partition(" ")
    if not (arrow and space and method and len(status) == 3 and status.isascii() and status.isdecimal()):
        return _NOTHING_SAID
    code = int(status)
    return HttpFacts(method, path, code if 100 <= code <= 599 else None)
