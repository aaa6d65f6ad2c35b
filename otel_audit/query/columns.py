"""The columns of the view `events`: what each holds, and how DuckDB takes it out of a line.

A value that is no text in the line, where a text is expected, is its JSON. Nothing in a line makes a query fail.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from otel_audit.event import Outcome

__all__ = ["COLUMNS", "Column", "events_sql"]


class Column(NamedTuple):
    """One column of `events`. `sql` is over the columns `line` and `service`."""

    name: str
    kind: str
    says: str
    sql: str


def _text(path: str) -> str:
    return f"json_extract_string(line, '$.{path}')"


def _whole(path: str) -> str:
    return f"TRY_CAST({_text(path)} AS BIGINT)"


# METHOD path -> status. Source: Feast 0.67 `AuditLogger.log_http_request`, whose events say it nowhere else.
_SAID: Final = r"'^(\S+) (.*) -> ([1-5]\d\d)$'"


def _said(group: int) -> str:
    is_http = f"{_text('event_type')} = 'http.request'"
    return f"CASE WHEN {is_http} THEN nullif(regexp_extract({_text('detail')}, {_SAID}, {group}), '') END"


_RESULT: Final = " ".join(
    (
        f"CASE {_text('outcome')}",
        *(f"WHEN '{each}' THEN '{each}'" for each in Outcome),
        "WHEN 'allow' THEN 'success' WHEN 'deny' THEN 'denied' WHEN 'mcp_error' THEN 'error' ELSE 'unknown' END",
    )
)

COLUMNS: Final = (
    Column(
        "time", "TIMESTAMP", "when it happened, UTC, to the microsecond", f"make_timestamp({_whole('time_ns')}//1000)"
    ),
    Column("service", "VARCHAR", "`service.name` of its writer", "service"),
    Column("event_type", "VARCHAR", "such as `http.request`", _text("event_type")),
    Column("outcome", "VARCHAR", "the word as it was logged", _text("outcome")),
    Column("result", "VARCHAR", "`success`, `failure`, `denied`, `error`, `cancelled` or `unknown`", _RESULT),
    Column("actor_id", "VARCHAR", "the id of the principal", _text("principal.id")),
    Column("actor_name", "VARCHAR", "the name of the principal", _text("principal.username")),
    Column("actor_issuer", "VARCHAR", "who vouches for that id", _text("principal.issuer")),
    Column("actor_kind", "VARCHAR", "`user`, `service` or `system`", _text("principal.kind")),
    Column("on_behalf_of", "VARCHAR", "for whom an agent acted", _text("principal.on_behalf_of")),
    Column("roles", "JSON", "the roles of the principal", "json_extract(line, '$.principal.roles')"),
    Column("client", "VARCHAR", "the address of the client", _text("source.ip")),
    Column("user_agent", "VARCHAR", "what the client calls itself", _text("source.user_agent")),
    Column("tool", "VARCHAR", "the MCP tool", _text("action.mcp_tool")),
    Column("method", "VARCHAR", "the HTTP method", f"coalesce({_text('action.method')}, {_said(1)})"),
    Column("path", "VARCHAR", "the path of the request", _text("action.path")),
    Column("verb", "VARCHAR", "such as `READ`, where the event names one", _text("action.verb")),
    Column("target_type", "VARCHAR", "the kind of the resource", _text("resource.type")),
    Column("target", "VARCHAR", "the name of the resource", _text("resource.name")),
    Column(
        "status_code",
        "BIGINT",
        "the HTTP status",
        f"coalesce({_whole('status_code')}, TRY_CAST({_said(3)} AS BIGINT))",
    ),
    Column("duration_ms", "DOUBLE", "how long it took", f"TRY_CAST({_text('duration_ms')} AS DOUBLE)"),
    Column("error_type", "VARCHAR", "the class of the exception", _text("error_type")),
    Column("reason", "VARCHAR", "why it was allowed or denied", _text("reason")),
    Column("policy_id", "VARCHAR", "the rule that allowed or denied", _text("policy_id")),
    Column("detail", "VARCHAR", "free text", _text("detail")),
    Column("request_id", "VARCHAR", "the id of the request", _text("request_id")),
    Column("trace_id", "VARCHAR", "the trace", _text("trace_id")),
    Column("span_id", "VARCHAR", "the span", _text("span_id")),
    Column("attributes", "JSON", "facts of the application", "json_extract(line, '$.attributes')"),
    Column("event_id", "VARCHAR", "the id of the event", _text("event_id")),
    Column("parent_id", "VARCHAR", "the event that it belongs to", _text("parent_id")),
    Column("system", "VARCHAR", "set for a line of the journal itself, such as `gap`", _text("system")),
    Column("time_ns", "BIGINT", "nanoseconds since 1970", _whole("time_ns")),
    Column("observed_ns", "BIGINT", "when it was recorded", _whole("observed_ns")),
    Column("stream_id", "VARCHAR", "the stream, which one process writes", _text("stream_id")),
    Column("seq", "BIGINT", "its number in the stream", _whole("seq")),
    Column("line", "VARCHAR", "the journal line, byte for byte", "line"),
)


def events_sql(lines: str) -> str:
    """Return the query that makes `events` of rows with `line` and `service`."""
    return f"SELECT {', '.join(f'{each.sql} AS {each.name}' for each in COLUMNS)} FROM ({lines}) AS lines"
