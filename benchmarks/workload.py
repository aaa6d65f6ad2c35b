"""What is logged: a seeded mix of calls, as arguments that every contender gets in the same order."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Call", "calls"]

# Per hundred: a feature server behind a login sees requests and tool calls, and few decisions of its own.
_MIX: Final = {"http": 45, "mcp": 35, "authz": 12, "authn": 8}
_OUTCOMES: Final = {"success": 90, "denied": 5, "failure": 3, "error": 2}
# Who they are decides what they may do: a name has its roles, a route and a tool their action.
_USERS: Final[tuple[tuple[str, list[str]], ...]] = (
    ("alice", ["reader"]),
    ("bob", ["reader", "writer"]),
    ("carol", ["reader"]),
    ("dave", ["admin"]),
    ("erin", ["reader", "writer"]),
    ("frank", ["reader"]),
    ("svc-training", ["reader"]),
    ("svc-ranking", []),
)
_ROUTES: Final = (
    ("POST", "/get-online-features", "READ_ONLINE"),
    ("POST", "/push", "WRITE_ONLINE"),
    ("POST", "/materialize", "WRITE_OFFLINE"),
    ("GET", "/feature-views/driver_stats", "DESCRIBE"),
    ("PUT", "/feature-views/driver_stats", "UPDATE"),
)
_TOOLS: Final = (
    ("get_online_features", "READ_ONLINE"),
    ("list_feature_views", "DESCRIBE"),
    ("push", "WRITE_ONLINE"),
    ("materialize", "WRITE_OFFLINE"),
    ("get_historical_features", "READ_OFFLINE"),
)
_VIEWS: Final = ("driver_stats", "customer_profile", "ranking_v2", "fraud_signals")
_STATUS: Final = {"success": 200, "denied": 403, "failure": 422, "error": 500}


@dataclass(frozen=True, slots=True)
class Call:
    """One event: the facts that every contender is given, each in its own form."""

    kind: str
    request_id: str
    username: str
    roles: list[str]
    ip: str
    transport: str
    resource_type: str
    resource_name: str
    resource_actions: list[str]
    outcome: str
    duration_ms: float
    method: str
    path: str
    tool: str
    status_code: int
    detail: str

    @property
    def event_type(self) -> str:
        """The type that the helpers give the event."""
        match self.kind:
            case "http":
                return "http.request"
            case "mcp":
                return "mcp.tools.call"
            case "authz":
                return "authz.decision"
        return "authn.success" if self.outcome == "success" else "authn.failure"

    def helper_arguments(self, principal: Any, source: Any, resource: Any) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the helper in Feast's interface; the parts are objects of the contender's models."""
        shared = {"request_id": self.request_id, "outcome": self.outcome, "principal": principal}
        match self.kind:
            case "http":
                own = {"method": self.method, "path": self.path, "status_code": self.status_code}
                timed = {"source": source, "resource": resource, "duration_ms": self.duration_ms}
                return "log_http_request", {**shared, **timed, **own}
            case "mcp":
                timed = {"source": source, "resource": resource, "duration_ms": self.duration_ms}
                return "log_mcp_call", {**shared, **timed, "tool_name": self.tool, "detail": self.detail}
            case "authz":
                return "log_authz", {**shared, "resource": resource, "detail": self.detail}
        return "log_authn", {**shared, "source": source, "detail": self.detail}

    def attributes(self) -> dict[str, Any]:
        """Fifteen attributes with the facts of the event under the keys that our records use."""
        return {
            "audit.record.id": self.request_id,
            "audit.actor.id": self.username,
            "audit.actor.type": "user",
            "audit.actor.auth_type": "oidc",
            "user.roles": self.roles,
            "audit.action": "READ",
            "audit.outcome": "success" if self.outcome == "success" else "failure",
            "audit.result": self.outcome,
            "audit.target.type": self.resource_type,
            "audit.target.id": self.resource_name,
            "audit.request.id": self.request_id,
            "audit.duration_ms": self.duration_ms,
            "audit.source.transport": self.transport,
            "client.address": self.ip,
            "url.path": self.path,
        }


def calls(count: int, seed: int) -> Sequence[Call]:
    """The same `count` calls for the same seed."""
    draw = random.Random(seed)
    return [_call(draw) for _ in range(count)]


def _call(draw: random.Random) -> Call:
    kind = _one_of(draw, _MIX)
    outcome = _one_of(draw, _OUTCOMES)
    username, roles = draw.choice(_USERS)
    method, path, on_route = draw.choice(_ROUTES)
    tool, of_tool = draw.choice(_TOOLS)
    return Call(
        kind=kind,
        request_id=str(uuid.UUID(int=draw.getrandbits(128), version=4)),
        username=username,
        roles=roles,
        ip=f"10.0.{draw.randrange(256)}.{draw.randrange(1, 255)}",
        transport="mcp-http" if kind == "mcp" else "http",
        resource_type="feature_view",
        resource_name=draw.choice(_VIEWS),
        resource_actions=[of_tool if kind == "mcp" else on_route],
        outcome=outcome,
        duration_ms=round(draw.lognormvariate(2.0, 0.8), 3),
        method=method,
        path=path,
        tool=tool,
        status_code=_STATUS[outcome],
        detail="" if outcome == "success" else f"{outcome}: permission READ_ONLINE on driver_stats",
    )


def _one_of(draw: random.Random, weights: dict[str, int]) -> str:
    return draw.choices(list(weights), list(weights.values()))[0]
