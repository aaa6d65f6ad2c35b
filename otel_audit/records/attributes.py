"""Every OTel attribute key that is written, with its type, its source in the event and the standard that names it.

There is one table, `ATTRIBUTES`. The record builder, docs/schema.md, the tests of the dashboards and `otel-audit
schema` read it. A row that is `direct` is copied from its field unchanged; every other value is derived in `mapping`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

import msgspec

__all__ = [
    "ATTRIBUTES",
    "FREE_PREFIX",
    "KEY_PATTERN",
    "MAX_ATTRIBUTES",
    "MAX_ATTRIBUTES_BYTES",
    "MAX_NAME_CHARS",
    "MAX_TEXT_BYTES",
    "SCHEMA_VERSION",
    "STORE_FIELDS",
    "Attribute",
    "Standard",
    "ValueType",
]

SCHEMA_VERSION: Final = "1.0.0"
"""Version of this mapping, written as `audit.schema.version`: the draft still moves, and readers must know by what."""

KEY_PATTERN: Final = re.compile(r"[a-z][a-z0-9_.]*")
"""What a key looks like, whole: one odd key makes Loki refuse the whole request."""

MAX_ATTRIBUTES: Final = 64
"""Attributes of one record: Loki takes 128 entries, with those of the resource and the scope."""

MAX_ATTRIBUTES_BYTES: Final = 48 * 1024
"""UTF-8 bytes of all keys and values of one record, a number as 8: Loki takes 64 KiB, resource and scope included."""

MAX_TEXT_BYTES: Final = 8 * 1024
"""A longer text is cut in the attribute (never in the body), so that the mandatory ones always fit together."""

MAX_NAME_CHARS: Final = 128
"""A longer name among the event's own `attributes` is left out of the record's attributes."""

FREE_PREFIX: Final = "audit.attribute."
"""Before the name of an event's own attribute that is no valid key, or that would take the place of another."""

STORE_FIELDS: Final = frozenset(
    {
        "body",
        "detected_level",
        "event_name",
        "flags",
        "level",
        "log_source",
        "observed_timestamp",
        "scope_name",
        "scope_version",
        "severity_number",
        "severity_text",
        "span_id",
        "timestamp",
        "trace_id",
    }
)
"""Names under which Loki and VictoriaLogs show a record's own fields: an attribute must not pose as one of them."""


class ValueType(StrEnum):
    """The type of an attribute's value. Source: OTel specification, "Attribute"."""

    STRING = "string"
    INT = "int"
    DOUBLE = "double"
    STRINGS = "string[]"


class Standard(StrEnum):
    """The standard that names the key."""

    DRAFT = "OTel audit draft (OTEP 0267)"
    SEMCONV = "OTel semantic conventions"
    GENAI = "OTel GenAI and MCP conventions"
    OURS = "ours"


class Attribute(msgspec.Struct, frozen=True):
    """One key: the type of its value, its field in the event, and the section of the standard that names it.

    If `direct`, it is copied from the field unchanged. If `repeats`, it takes few values in a service, so it is encoded
    once a batch.
    """

    key: str
    type: ValueType
    field: str
    standard: Standard
    section: str
    note: str = ""
    direct: bool = False
    repeats: bool = False


RECORD_ID: Final = "audit.record.id"
ACTOR_ID: Final = "audit.actor.id"
ACTOR_TYPE: Final = "audit.actor.type"
ACTION: Final = "audit.action"
OUTCOME: Final = "audit.outcome"
RESULT: Final = "audit.result"
SCHEMA: Final = "audit.schema.version"
SOURCE_ID: Final = "audit.source.id"
SOURCE_TYPE: Final = "audit.source.type"
SEQUENCE_STREAM_ID: Final = "audit.sequence.stream_id"
SEQUENCE_NUMBER: Final = "audit.sequence.number"
HTTP_METHOD: Final = "http.request.method"
HTTP_METHOD_ORIGINAL: Final = "http.request.method_original"
HTTP_STATUS_CODE: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
URL_PATH: Final = "url.path"
CLAIMED_REQUEST_ID: Final = "audit.request.claimed_id"
TRACEPARENT: Final = "audit.request.traceparent"
MCP_METHOD: Final = "mcp.method.name"
MCP_RESOURCE_URI: Final = "mcp.resource.uri"
PROMPT_NAME: Final = "gen_ai.prompt.name"

_STRING, _INT, _DOUBLE, _STRINGS = ValueType.STRING, ValueType.INT, ValueType.DOUBLE, ValueType.STRINGS
_DRAFT, _SEMCONV, _GENAI, _OURS = Standard.DRAFT, Standard.SEMCONV, Standard.GENAI, Standard.OURS

ATTRIBUTES: Final[tuple[Attribute, ...]] = (
    Attribute(
        RECORD_ID, _STRING, "event_id", _DRAFT, "Mandatory Attributes", "`<stream_id>:<seq>` where the line has no id"
    ),
    Attribute(
        ACTOR_ID,
        _STRING,
        "principal.id",
        _DRAFT,
        "Mandatory Attributes",
        "unset: `principal.username`, else `anonymous`",
    ),
    Attribute(
        ACTOR_TYPE,
        _STRING,
        "principal.kind",
        _DRAFT,
        "Mandatory Attributes",
        "unset: `user` with an id or a name, else `system`",
    ),
    Attribute(ACTION, _STRING, "action.verb", _DRAFT, "Mandatory Attributes", "unset: by event type, see above"),
    Attribute(OUTCOME, _STRING, "outcome", _DRAFT, "Mandatory Attributes", "`success`, `failure` or `unknown`"),
    Attribute(RESULT, _STRING, "outcome", _OURS, "", "the six outcomes; the draft has three words"),
    Attribute(SCHEMA, _STRING, "", _DRAFT, "Optional Attributes", f"the version of this table: `{SCHEMA_VERSION}`"),
    Attribute(SOURCE_ID, _STRING, "resource: service.instance.id", _DRAFT, "Source Attributes", "of the writer"),
    Attribute(SOURCE_TYPE, _STRING, "", _DRAFT, "Source Attributes", "`service`, with `audit.source.id`"),
    Attribute(SEQUENCE_STREAM_ID, _STRING, "stream_id", _DRAFT, "Ordering Attributes"),
    Attribute(SEQUENCE_NUMBER, _INT, "seq", _DRAFT, "Ordering Attributes", "from 1; a gap is a missing record"),
    Attribute("audit.target.id", _STRING, "resource.name", _DRAFT, "Target Attributes", direct=True),
    Attribute("audit.target.type", _STRING, "resource.type", _DRAFT, "Target Attributes", direct=True, repeats=True),
    Attribute("audit.target.actions", _STRINGS, "resource.actions", _OURS, "", direct=True, repeats=True),
    Attribute("audit.request.id", _STRING, "request_id", _OURS, "", direct=True),
    Attribute(
        CLAIMED_REQUEST_ID,
        _STRING,
        f"attributes['{CLAIMED_REQUEST_ID}']",
        _OURS,
        "",
        "the `X-Request-Id` of a peer that is no trusted proxy",
    ),
    Attribute(
        TRACEPARENT,
        _STRING,
        f"attributes['{TRACEPARENT}']",
        _OURS,
        "",
        "of a request without a server span: kept as it came, not believed",
    ),
    Attribute("audit.parent.id", _STRING, "parent_id", _OURS, "", "`audit.record.id` of the parent", direct=True),
    Attribute("audit.duration_ms", _DOUBLE, "duration_ms", _OURS, "", "milliseconds", direct=True),
    Attribute("audit.actor.name", _STRING, "principal.username", _OURS, "", direct=True, repeats=True),
    Attribute("audit.actor.issuer", _STRING, "principal.issuer", _OURS, "", direct=True, repeats=True),
    Attribute("audit.actor.on_behalf_of", _STRING, "principal.on_behalf_of", _OURS, "", direct=True, repeats=True),
    Attribute("audit.actor.auth_type", _STRING, "principal.auth_type", _OURS, "", direct=True, repeats=True),
    Attribute("audit.source.transport", _STRING, "source.transport", _OURS, "", direct=True, repeats=True),
    Attribute("user.roles", _STRINGS, "principal.roles", _SEMCONV, "User", direct=True, repeats=True),
    Attribute("client.address", _STRING, "source.ip", _SEMCONV, "Client", direct=True),
    Attribute("user_agent.original", _STRING, "source.user_agent", _SEMCONV, "User agent", direct=True),
    Attribute("error.type", _STRING, "error_type", _SEMCONV, "Error", direct=True, repeats=True),
    Attribute("audit.policy.id", _STRING, "policy_id", _OURS, "", direct=True),
    Attribute("audit.tags", _STRINGS, "tags", _OURS, "", "words of the policy's rule", direct=True, repeats=True),
    Attribute("audit.reason", _STRING, "reason", _OURS, "", direct=True),
    Attribute(
        HTTP_METHOD,
        _STRING,
        "action.method",
        _SEMCONV,
        "HTTP",
        "`_OTHER` if the method is not a known one; unset: from the `detail` of an `http.request`",
    ),
    Attribute(HTTP_METHOD_ORIGINAL, _STRING, "action.method", _SEMCONV, "HTTP", "with `_OTHER`: the method as it came"),
    Attribute(HTTP_STATUS_CODE, _INT, "status_code", _SEMCONV, "HTTP", "unset: from the `detail` of an `http.request`"),
    Attribute(HTTP_ROUTE, _STRING, "attributes['http.route']", _SEMCONV, "HTTP", "the template, without values"),
    Attribute(
        URL_PATH, _STRING, "action.path", _SEMCONV, "URL", "of an `http.request`, or if it begins with `/`; no query"
    ),
    Attribute(
        MCP_METHOD, _STRING, "event_type", _GENAI, "MCP", "`tools/call`, `resources/read`, `prompts/get`, by type"
    ),
    Attribute("gen_ai.tool.name", _STRING, "action.mcp_tool", _GENAI, "GenAI", direct=True, repeats=True),
    Attribute("jsonrpc.request.id", _STRING, "jsonrpc_id", _GENAI, "JSON-RPC", direct=True),
    Attribute(
        MCP_RESOURCE_URI, _STRING, "resource.name", _GENAI, "MCP", "of `mcp.resources.read`; unset: `action.path`"
    ),
    Attribute(PROMPT_NAME, _STRING, "resource.name", _GENAI, "GenAI", "of `mcp.prompts.get`"),
    Attribute("audit.detail", _STRING, "detail", _OURS, "", "last, since it may be long", direct=True),
)
"""The table, in the order of docs/schema.md."""
