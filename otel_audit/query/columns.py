"""The columns of the view `events`: what each holds, and how DuckDB extracts it from a line.

If a text is expected and the line holds another kind of value, the column has its JSON. No line makes a query fail.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from otel_audit.event_schema import Outcome

__all__ = ["COLUMNS", "COLUMN_NAMES", "Column", "events_sql"]


class Column(NamedTuple):
    """One column of `events`. `sql` is over the fields of a line, each a text, and over `line` and `service`."""

    name: str
    kind: str
    says: str
    sql: str


_FIELDS: Final = {
    "event_type": "event_type",
    "outcome": "outcome",
    "actor_id": "principal.id",
    "actor_name": "principal.username",
    "actor_issuer": "principal.issuer",
    "actor_kind": "principal.kind",
    "on_behalf_of": "principal.on_behalf_of",
    "roles": "principal.roles",
    "client": "source.ip",
    "user_agent": "source.user_agent",
    "tool": "action.mcp_tool",
    "method": "action.method",
    "path": "action.path",
    "verb": "action.verb",
    "target_type": "resource.type",
    "target": "resource.name",
    "status_code": "status_code",
    "duration_ms": "duration_ms",
    "error_type": "error_type",
    "reason": "reason",
    "policy_id": "policy_id",
    "detail": "detail",
    "request_id": "request_id",
    "trace_id": "trace_id",
    "span_id": "span_id",
    "attributes": "attributes",
    "tags": "tags",
    "event_id": "event_id",
    "parent_id": "parent_id",
    "system": "system",
    "time_ns": "time_ns",
    "observed_ns": "observed_ns",
    "stream_id": "stream_id",
    "seq": "seq",
}


def _whole(field: str) -> str:
    return f"TRY_CAST({field} AS BIGINT)"


def _finite(field: str) -> str:
    """Return a number that JSON allows, since one row with NaN would make a whole JSON answer invalid."""
    number = f"TRY_CAST({field} AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


# METHOD path -> status. Source: Feast 0.67 `AuditLogger.log_http_request`, whose events have it nowhere else.
_SAID: Final = r"'^(\S+) .* -> ([1-5]\d\d)$'"


def _said(group: int) -> str:
    return f"CASE WHEN event_type = 'http.request' THEN nullif(regexp_extract(detail, {_SAID}, {group}), '') END"


_RESULT: Final = " ".join(
    (
        "CASE outcome",
        *(f"WHEN '{each}' THEN '{each}'" for each in Outcome),
        "WHEN 'allow' THEN 'success' WHEN 'deny' THEN 'denied' WHEN 'mcp_error' THEN 'error' ELSE 'unknown' END",
    )
)
_STATUS: Final = f"coalesce({_whole('status_code')}, TRY_CAST({_said(2)} AS BIGINT))"

COLUMNS: Final = (
    Column(
        "time", "TIMESTAMP", "when it happened, UTC, to the microsecond", f"make_timestamp({_whole('time_ns')} // 1000)"
    ),
    Column("service", "VARCHAR", "`service.name` of its writer", "service"),
    Column("event_type", "VARCHAR", "such as `http.request`", "event_type"),
    Column("outcome", "VARCHAR", "the word as it was logged", "outcome"),
    Column("result", "VARCHAR", "`success`, `failure`, `denied`, `error`, `cancelled` or `unknown`", _RESULT),
    Column("actor_id", "VARCHAR", "the id of the principal", "actor_id"),
    Column("actor_name", "VARCHAR", "the name of the principal", "actor_name"),
    Column("actor_issuer", "VARCHAR", "the issuer of that id", "actor_issuer"),
    Column("actor_kind", "VARCHAR", "`user`, `service` or `system`", "actor_kind"),
    Column("on_behalf_of", "VARCHAR", "for whom an agent acted", "on_behalf_of"),
    Column("roles", "JSON", "the roles of the principal", "TRY_CAST(roles AS JSON)"),
    Column("client", "VARCHAR", "the address of the client", "client"),
    Column("user_agent", "VARCHAR", "what the client calls itself", "user_agent"),
    Column("tool", "VARCHAR", "the MCP tool", "tool"),
    Column("method", "VARCHAR", "the HTTP method", f"coalesce(method, {_said(1)})"),
    Column("path", "VARCHAR", "the path of the request", "path"),
    Column("verb", "VARCHAR", "such as `READ`, where the event names one", "verb"),
    Column("target_type", "VARCHAR", "the kind of the resource", "target_type"),
    Column("target", "VARCHAR", "the name of the resource", "target"),
    Column("status_code", "BIGINT", "the HTTP status", _STATUS),
    Column("duration_ms", "DOUBLE", "how long it took", _finite("duration_ms")),
    Column("error_type", "VARCHAR", "the class of the exception", "error_type"),
    Column("reason", "VARCHAR", "why it was allowed or denied", "reason"),
    Column("policy_id", "VARCHAR", "the rule that allowed or denied", "policy_id"),
    Column("detail", "VARCHAR", "free text", "detail"),
    Column("request_id", "VARCHAR", "the id of the request", "request_id"),
    Column("trace_id", "VARCHAR", "the trace", "trace_id"),
    Column("span_id", "VARCHAR", "the span", "span_id"),
    Column("attributes", "JSON", "attributes that the application added", "TRY_CAST(attributes AS JSON)"),
    Column("tags", "JSON", "tags that the policy added, such as `privileged`", "TRY_CAST(tags AS JSON)"),
    Column("event_id", "VARCHAR", "the id of the event", "event_id"),
    Column("parent_id", "VARCHAR", "the event that it belongs to", "parent_id"),
    Column("system", "VARCHAR", "set for a line of the journal itself, such as `gap`", "system"),
    Column("time_ns", "BIGINT", "nanoseconds since 1970", _whole("time_ns")),
    Column("observed_ns", "BIGINT", "when it was recorded", _whole("observed_ns")),
    Column("stream_id", "VARCHAR", "the stream, which one process writes", "stream_id"),
    Column("seq", "BIGINT", "its number in the stream", _whole("seq")),
    Column("line", "VARCHAR", "the journal line, byte for byte", "line"),
)
COLUMN_NAMES: Final = ", ".join(column.name for column in COLUMNS)
_ONE_BY_ONE: Final = ", ".join(f"json_extract_string(line, '$.{path}') AS {name}" for name, path in _FIELDS.items())
_PATHS: Final = ", ".join(f"'$.{path}'" for path in _FIELDS.values())
_AT_ONCE: Final = f"json_extract_string(line, [{_PATHS}]) AS fields"
_NAMED: Final = ", ".join(f"fields[{number}] AS {name}" for number, name in enumerate(_FIELDS, 1))


def events_sql(lines: str, *, few: bool = False) -> str:
    """Return the query that turns rows with `line` and `service` into `events`.

    All fields are extracted from a line at once, which needs little memory. If a query needs only a `few` of them,
    extracting each on its own is twice as fast.
    """
    if few:
        fields = f"SELECT line, service, {_ONE_BY_ONE} FROM ({lines})"
    else:
        fields = f"SELECT line, service, {_NAMED} FROM (SELECT line, service, {_AT_ONCE} FROM ({lines}))"
    return f"SELECT {', '.join(f'{each.sql} AS {each.name}' for each in COLUMNS)} FROM ({fields})"
