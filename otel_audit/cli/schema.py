"""`otel-audit schema`: the JSON Schema of an event, and the table of its OTel attributes; docs/schema.md from both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import click

from otel_audit.event import AuditEvent, Outcome
from otel_audit.records.attributes import (
    ATTRIBUTES,
    FREE_PREFIX,
    MAX_ATTRIBUTES,
    MAX_ATTRIBUTES_BYTES,
    MAX_NAME_CHARS,
    MAX_TEXT_BYTES,
    SCHEMA_VERSION,
)
from otel_audit.records.facts import Verdict, verdict_of
from otel_audit.reporting.schema import TABLES, trail_report_schema
from otel_audit.verification.findings import report_schema

__all__ = ["event_schema", "schema", "schema_markdown"]

SCHEMA_ID: Final = f"urn:otel-audit:event:{SCHEMA_VERSION}"

_JOURNAL_KEYS: Final[dict[str, dict[str, Any]]] = {
    "time_ns": {"type": "integer", "description": "When it happened: nanoseconds since 1970, UTC."},
    "observed_ns": {
        "type": "integer",
        "minimum": 0,
        "description": "When it was logged: nanoseconds since 1970, UTC.",
    },
    "stream_id": {
        "type": "string",
        "description": "UUIDv7 of the stream: one process, one hash chain; or of the ledger.",
    },
    "seq": {"type": "integer", "minimum": 1, "description": "Place in the stream, from 1, without gaps."},
    "prev_hash": {
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
        "description": "Hex SHA-256 of the line before, without its newline. Absent on the first line.",
    },
}
_SYSTEM_KEYS: Final[dict[str, dict[str, Any]]] = {
    "system": {
        "enum": ["segment", "gap", "ledger", "note"],
        "description": "Only on lines that the journal makes itself: their facts are in an object of this name.",
    },
    "segment": {"type": "object", "description": "Header of a segment: resource, scope, host, format."},
    "gap": {"type": "object", "description": "What was lost before this line: counts, reasons, times."},
    "ledger": {
        "type": "object",
        "description": "Entry of the signed ledger: its kind, and what docs/integrity.md says.",
    },
    "note": {"type": "object", "description": "Signed note over all lines of the ledger before it, as `text`."},
}

_SAID: Final = {
    "event_type": "What kind of event: a free word, like `http.request`.",
    "timestamp": "When, in UTC, for human readers; made by the logger when unset.",
    "request_id": "What the events of one request share; made by the logger when unset.",
    "trace_id": "Trace of the active span, 32 hex digits.",
    "span_id": "The active span, 16 hex digits.",
    "jsonrpc_id": "Id of the JSON-RPC request.",
    "principal.username": "The actor's name, as people read it.",
    "principal.roles": "The actor's roles.",
    "principal.auth_type": "How the actor was authenticated.",
    "principal.id": "What identifies the actor, with `principal.issuer`: `sub` of OpenID Connect.",
    "principal.issuer": "Who gave that id: `iss` of OpenID Connect.",
    "principal.kind": "`user`, `service` or `system`.",
    "principal.on_behalf_of": "For whom the actor acted.",
    "source.ip": "Address of the client.",
    "source.transport": "How the request came in, like `http`.",
    "source.user_agent": "What the client says it is.",
    "action.mcp_tool": "Name of the MCP tool.",
    "action.path": "Path of the request, or URI of the MCP resource.",
    "action.verb": "What was done, like `READ`.",
    "action.method": "HTTP method.",
    "action.arguments_digest": "Hex SHA-256 of the arguments.",
    "resource.type": "What kind of thing it was done to.",
    "resource.name": "Name of the thing.",
    "resource.actions": "Permissions that were asked for.",
    "outcome": "How it ended: a free word, kept as it is.",
    "duration_ms": "How long it took, in milliseconds.",
    "detail": "Anything more, as text.",
}


def event_schema() -> dict[str, Any]:
    """Return the JSON Schema of an event; `#/$defs/JournalLine` is that of a line of the journal.

    Source: JSON Schema 2020-12.
    """
    model = AuditEvent.model_json_schema()
    line = {
        "title": "JournalLine",
        "description": "A line of the journal, and the body of a LogRecord: an event and the journal's keys.",
        "allOf": [{"$ref": "#"}],
        "properties": {**_SYSTEM_KEYS, **_JOURNAL_KEYS},
        "required": [key for key in _JOURNAL_KEYS if key != "prev_hash"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        **model,
        "title": "AuditEvent",
        "$defs": {**model["$defs"], "JournalLine": line},
    }


@click.command()
@click.option("--json", "form", flag_value="json", default="json", help="Print the JSON Schema of the event (default).")
@click.option("--attributes", "form", flag_value="attributes", help="Print the table of OTel attributes.")
@click.option("--report", "form", flag_value="report", help="Print the JSON Schema of `verify --json`.")
@click.option("--trail-report", "form", flag_value="trail-report", help="Print the JSON Schema of `report --json`.")
@click.option("--markdown", "form", flag_value="markdown", help="Print the page docs/schema.md.")
def schema(form: str) -> None:
    """Print the fields of an event and the OTel attributes that they are mapped to."""
    match form:
        case "attributes":
            click.echo("\n".join(_columns([("key", "type", "from", "named by"), *_attribute_cells()])))
        case "report":
            click.echo(json.dumps(report_schema(), indent=2))
        case "trail-report":
            click.echo(json.dumps(trail_report_schema(), indent=2))
        case "markdown":
            click.echo(schema_markdown(), nl=False)
        case _:
            click.echo(json.dumps(event_schema(), indent=2, ensure_ascii=False))


def _attribute_cells() -> Iterator[tuple[str, str, str, str]]:
    for row in ATTRIBUTES:
        named_by = f"{row.standard}, {row.section}" if row.section else str(row.standard)
        yield row.key, row.type, row.field or "-", named_by


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def schema_markdown() -> str:
    """Return the text of docs/schema.md, made from the event model and the tables."""
    return _PAGE.format(
        version=SCHEMA_VERSION,
        free_prefix=FREE_PREFIX,
        max_attributes=MAX_ATTRIBUTES,
        max_kib=MAX_ATTRIBUTES_BYTES // 1024,
        text_kib=MAX_TEXT_BYTES // 1024,
        max_name_chars=MAX_NAME_CHARS,
        fields=_table(("field", "type", "in the line", "what it is"), _field_cells()),
        journal_keys=_table(("key", "type", "what it is"), _journal_cells()),
        severities=_table(("outcome", "severity", "`audit.outcome`", "`audit.result`"), _verdict_cells()),
        attributes=_table(("key", "type", "from", "named by", "note"), _mapped_cells()),
        report=_table(("key", "what it is"), _report_cells()),
        trail_report=_table(("key", "what it is"), _trail_report_cells()),
        conformance=_table(("the draft says", "here", "why"), _CONFORMANCE),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def _field_cells() -> Iterator[tuple[str, str, str, str]]:
    definitions = event_schema()
    for name, field in definitions["properties"].items():
        if "$ref" not in field:
            yield _one_field(name, field)
            continue
        part = definitions["$defs"][field["$ref"].rpartition("/")[2]]
        for inner, inner_field in part["properties"].items():
            yield _one_field(f"{name}.{inner}", inner_field)


def _one_field(path: str, field: dict[str, Any]) -> tuple[str, str, str, str]:
    optional = {"type": "null"} in field.get("anyOf", [])
    said = field.get("description") or _SAID[path]
    return f"`{path}`", _type_name(field), "when set" if optional else "always", said


def _type_name(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type_name(each) for each in field["anyOf"] if each.get("type") != "null"))
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if field.get("type") == "array":
        return f"list of {_type_name(field['items'])}"
    return str(field.get("type", "enum"))


def _journal_cells() -> Iterator[tuple[str, str, str]]:
    for key, field in {**_SYSTEM_KEYS, **_JOURNAL_KEYS}.items():
        yield f"`{key}`", _type_name(field), field["description"]


def _report_cells() -> Iterator[tuple[str, str]]:
    whole = report_schema()
    parts = {
        "findings[]": whole["properties"]["findings"]["items"],
        "streams[]": whole["properties"]["streams"]["items"],
        "ledger": whole["$defs"]["Ledger"],
    }
    yield "`verdict`", " or ".join(f"`{each}`" for each in whole["properties"]["verdict"]["enum"])
    for name, part in parts.items():
        for key, field in part["properties"].items():
            if said := field.get("description"):
                yield f"`{name}.{key}`", said


def _trail_report_cells() -> Iterator[tuple[str, str]]:
    for key, field in trail_report_schema()["properties"].items():
        columns = ", ".join(f"`{column}`" for column in TABLES[key][1]) if key in TABLES else ""
        yield f"`{key}`", f"{field['description']} {columns}".rstrip()


def _verdict_cells() -> Iterator[tuple[str, str, str, str]]:
    for outcome in Outcome:
        verdict: Verdict = verdict_of(outcome)
        severity = f"{verdict.severity_text} ({verdict.severity_number})"
        yield f"`{outcome}`", severity, f"`{verdict.outcome}`", f"`{verdict.result}`"


def _mapped_cells() -> Iterator[tuple[str, str, str, str, str]]:
    for (key, type_, field, named_by), row in zip(_attribute_cells(), ATTRIBUTES, strict=True):
        yield f"`{key}`", type_, f"`{field}`" if row.field else "", named_by, row.note


_CONFORMANCE: Final[tuple[tuple[str, str, str], ...]] = (
    (
        "Timestamp, ObservedTimestamp, EventName, Resource MUST be set",
        "set, from the line and its segment's header",
        "",
    ),
    ("the five mandatory attributes MUST be present", "always present, never empty", ""),
    (
        "SeverityNumber and SeverityText SHOULD NOT be set",
        "both set",
        "viewers and alert rules of the Logs signal filter by severity; the draft leaves it out of what is signed",
    ),
    (
        "InstrumentationScope MUST be left empty",
        "name and version of this package",
        "a reader must know which version wrote the mapping; the draft's own pipeline does not exist yet",
    ),
    (
        "Body MUST NOT repeat the mandatory attributes",
        "the body is the journal line, whole",
        "the store returns it byte for byte, so the hash chain can be checked there; attributes are for queries",
    ),
    (
        "`audit.record.id`: UUID v4 recommended",
        "UUID v7",
        "it sorts by time; still unpredictable and stable over resends",
    ),
    (
        "`audit.outcome`: three words",
        "the three words; `denied`, `error` and `cancelled` are `failure`",
        "`audit.result` keeps the difference: a denial is not a fault",
    ),
    (
        "`audit.source.id`, `.type`: network address that the action came from",
        "`service.instance.id` of the writer, `service`",
        "the network address is `client.address`, as in all other OTel signals",
    ),
    (
        "`audit.sequence.previous_hash`: IntegrityHash of the previous record, over its JCS form",
        "not an attribute; `prev_hash` in the body is the SHA-256 of the previous line",
        "hashing stored bytes needs no canonical form; under the draft's key, a conforming reader would raise an alarm",
    ),
    (
        "`audit.sequence.previous_record_id` MAY be set",
        "not set",
        "(`stream_id`, `seq - 1`) finds the record before",
    ),
    (
        "`audit.sequence.end` on the last record of a closed stream",
        "not set",
        "a stream may end with the death of its process, and no line says so",
    ),
    (
        "`audit.integrity.*`: a signature on each record",
        "not set",
        "a signed ledger names each line by a tree over all lines of its stream: one signature for many, and a proof "
        "of each ([proofs.md](proofs.md))",
    ),
    (
        "own endpoint `/v1/audit`, a receipt from the sink for each record",
        "OTLP logs, `/v1/logs`; the receipt comes from the journal on disk",
        "it works with every collector of today",
    ),
    ("no sampling, no silent drop, keys unique", "held", ""),
)

_PAGE: Final = """\
# Schema

<!-- Made by `otel-audit schema --markdown > docs/schema.md` from the event model and records/attributes.py. -->

What an audit event holds, what the journal adds, and how the line becomes an OTel LogRecord. Version of the mapping:
`{version}`, in every record as `audit.schema.version`. The JSON Schema: `otel-audit schema --json`; a journal line is
its `#/$defs/JournalLine`.

## Event

One JSON object, in this order. Unknown fields are ignored.

{fields}

## Journal line

The event, then the journal's own keys; a line that the journal makes itself begins with `system`.

{journal_keys}

## LogRecord

| field | value |
| --- | --- |
| EventName | `event_type` |
| Timestamp, ObservedTimestamp | `time_ns`, `observed_ns`; a time before 1970 is sent as 0, unknown |
| TraceId, SpanId, Flags | `trace_id`, `span_id`, `trace_flags`, also when the trace was not sampled |
| Severity | by outcome, number and text |
| Body | the journal line, byte for byte, without its newline |
| Resource, Scope | of the segment's header: the writer's, never the exporter's |
| dropped_attributes_count | how many attributes are in the body only |

The outcome is derived from the stored word, which stays as it is: `allow` is `success`, `deny` is `denied`,
`mcp_error` is `error`, any other word is `unknown`.

{severities}

`audit.action` is the event's `action.verb`; without one, it goes by `event_type`:

| event type | `audit.action` |
| --- | --- |
| `http.request` | GET, HEAD, OPTIONS `READ`; POST `CREATE`; PUT, PATCH `UPDATE`; DELETE `DELETE`; others `EXECUTE` |
| `mcp.tools.call` | `EXECUTE` |
| `mcp.resources.read`, `mcp.prompts.get` | `READ` |
| `authn.*` | `LOGIN` |
| `authz.decision` | what was decided on: the only one in `resource.actions`, else `EXECUTE` |
| any other | `EXECUTE` |

## Attributes

An attribute whose field is unset, empty or of another type is left out; nothing about a value can make a record fail.

{attributes}

The event's own `attributes` follow, in their order:

* under their own name, if it matches `[a-z][a-z0-9_.]*` and is not taken: by a key of this table, `audit.*`, a
  resource attribute, a name that stores give to a record's own fields (`trace_id`, `event_name`, ...), or a name
  that differs from one of these in dots and underscores only, since Loki stores both as `_`. An attribute can
  therefore never pose as another fact;
* else as `{free_prefix}<name>`, in lower case, other characters as `_`;
* `http.route` is the exception: it is where the route's template is put.

A record has at most {max_attributes} attributes and {max_kib} KiB of keys and values. A text over {text_kib} KiB is
cut in the attribute. An attribute of the event that does not fit, has a name over {max_name_chars} characters, or has a
value that no attribute can hold (null, an object, an integer beyond 64 bits) stays out, and is counted in
`dropped_attributes_count`. Where all is too large, `audit.detail` goes next; the mandatory ones always fit. The body
always has everything.

Only in the body: `action.arguments_digest`, `redacted`, `truncated`, `prev_hash`, and the objects of system lines.

## Report of verify

What `otel-audit verify --json` prints. The JSON Schema of it: `otel-audit schema --report`.

{report}

## Report on a trail

What `otel-audit report --json` prints. The JSON Schema of it: `otel-audit schema --trail-report`. A table is an object
of `rows`, whose columns stand behind its sentence here, and of `more`, which says how many rows are left out.

{trail_report}

## Conformance with the OTel audit draft

OTEP 0267 is a draft, and its names still move. This is compared with its audit record data model as of August 2026.

{conformance}
"""
