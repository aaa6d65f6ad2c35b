"""What Feast writes on its logger `feast.audit`, as the fields of an event: JSON lines of two schemas.

Source: Feast 0.67, `audit.audit_logger.AuditEvent` (setting `feature_server.audit_logging`) and
`metrics.emit_online_audit_log`, `metrics.emit_offline_audit_log` (setting `feature_server.metrics.audit_logging`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["FEAST_LOGGER", "event_of_line"]

FEAST_LOGGER: Final = "feast.audit"

_ACTION_BY_EVENT: Final = {"online_feature_request": "READ_ONLINE", "offline_feature_retrieval": "READ_OFFLINE"}
_MAPPED: Final = frozenset({"event", "timestamp", "requestor_id", "status", "latency_ms", "duration_ms"})


def event_of_line(text: str) -> dict[str, Any] | None:
    """The fields of the event in a line; None if it is of neither schema. Values may be of any type: see `as_event`."""
    if not text.startswith("{"):
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(line.get("event_type"), str):
        return dict(line)
    event = line.get("event")
    return _of_metrics(line, event) if isinstance(event, str) and event in _ACTION_BY_EVENT else None


def _of_metrics(line: Mapping[str, Any], event: str) -> dict[str, Any]:
    """What has no field of its own is an attribute, under Feast's name for it."""
    requestor = line.get("requestor_id")
    return {
        "event_type": f"feast.{event}",
        "timestamp": line.get("timestamp", ""),
        "principal": {"username": "" if requestor in (None, "anonymous") else requestor},
        "action": {"verb": "READ"},
        "resource": {
            "type": "FeatureView",
            "name": _joined(line.get("feature_views")),
            "actions": [_ACTION_BY_EVENT[event]],
        },
        "outcome": line.get("status", ""),
        "duration_ms": line.get("latency_ms", line.get("duration_ms")),
        "attributes": {f"feast.{key}": value for key, value in line.items() if key not in _MAPPED},
    }


def _joined(names: object) -> str:
    return ",".join(map(str, names)) if isinstance(names, list) else ""
