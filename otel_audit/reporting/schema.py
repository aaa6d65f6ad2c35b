"""The JSON Schema of what `otel-audit report --json` prints. Source: JSON Schema 2020-12."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from otel_audit.event import Outcome
from otel_audit.verification.findings import report_schema

__all__ = ["TABLES", "trail_report_schema"]

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_TIME: Final = {"type": "integer", "description": "Nanoseconds since 1970, UTC."}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_TIME_OR_NULL: Final = {"type": ["integer", "null"], "description": "Nanoseconds since 1970, UTC."}

_RESULTS: Final = {str(each): _COUNT for each in Outcome}
_WHO: Final = {
    "actor": {**_TEXT_OR_NULL, "description": "The id of the principal, else its name; null for nobody."},
    "issuer": {**_TEXT_OR_NULL, "description": "Who gave that id."},
    "name": {**_TEXT_OR_NULL, "description": "The name of the principal, which may be anybody's."},
    "kind": {**_TEXT_OR_NULL, "description": "`user`, `service` or `system`."},
}
_BEHALF: Final = {"on_behalf_of": {**_TEXT_OR_NULL, "description": "For whom an agent acted."}}
_SPAN: Final = {"events": _COUNT, "first_ns": _TIME_OR_NULL, "last_ns": _TIME_OR_NULL}
_LAST: Final = {"last_event_id": {**_TEXT_OR_NULL, "description": "What `otel-audit prove` takes."}}
_DONE: Final = {
    "event_type": _TEXT_OR_NULL,
    "what": {**_TEXT_OR_NULL, "description": "The tool, or method and path, or verb."},
    "target": {**_TEXT_OR_NULL, "description": "What it was done to, as TYPE/NAME."},
}
_LOSSES: Final = {
    "gaps": {**_COUNT, "description": "Lines of the journal that name a loss."},
    "lost": {**_COUNT, "description": "Events that they say were lost."},
}

TABLES: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "days": ("Events of each day, the last days of the period.", {"day": _TEXT_OR_NULL, "events": _COUNT, **_RESULTS}),
    "types": (
        "Events by type and outcome.",
        {
            "event_type": _TEXT_OR_NULL,
            "outcome": {**_TEXT_OR_NULL, "description": "The word that was logged."},
            "result": {**_TEXT, "description": "What it means: one of the six outcomes."},
            "events": _COUNT,
        },
    ),
    "actors": ("Events by actor.", {**_WHO, **_BEHALF, **_SPAN, "denied": _COUNT, "failed": _COUNT}),
    "denied": (
        "Denials by actor, request and target.",
        {**_WHO, **_BEHALF, **_DONE, "reason": _TEXT_OR_NULL, **_SPAN, **_LAST},
    ),
    "privileged": (
        "Events with the tag `privileged`.",
        {**_WHO, **_BEHALF, **_DONE, "result": _TEXT, **_SPAN, **_LAST},
    ),
    "failed_logins": ("Failed logins by actor and address.", {**_WHO, "client": _TEXT_OR_NULL, **_SPAN, **_LAST}),
    "new_actors": (
        "Actors first seen in the period; null where nothing precedes it.",
        {**_WHO, **_SPAN, "client": _TEXT_OR_NULL, "first_event_id": _TEXT_OR_NULL},
    ),
    "services": (
        "When each service has events.",
        {"service": _TEXT, "streams": _COUNT, **_SPAN, **_LOSSES},
    ),
    "streams": (
        "When each stream has events.",
        {"service": _TEXT, "stream_id": _TEXT, **_SPAN, **_LOSSES},
    ),
    "gaps": (
        "The losses that services recorded.",
        {
            "time_ns": _TIME_OR_NULL,
            "service": _TEXT,
            "stream_id": _TEXT,
            "seq": _COUNT,
            "lost": _COUNT,
            "reason": _TEXT_OR_NULL,
            "reasons": {"type": ["array", "null"], "items": _TEXT},
        },
    ),
    "silences": (
        "Times of a service without an event.",
        {"service": _TEXT, "since_ns": _TIME, "until_ns": _TIME, "seconds": _COUNT},
    ),
}
"""Each table of a report: what it lists, and the columns of its rows."""


def trail_report_schema() -> dict[str, Any]:
    """Return the JSON Schema of a report on a trail."""
    verification = report_schema()
    definitions = verification.pop("$defs")
    del verification["$schema"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "TrailReport",
        **_object(
            {
                "source": {**_TEXT, "description": "The trail: a path, or a URL without its credentials."},
                "made_ns": {**_TIME, "description": "When it was made, in nanoseconds since 1970."},
                "version": {**_TEXT, "description": "The version of this package."},
                "since_ns": {
                    **_TIME_OR_NULL,
                    "description": "The beginning of the period; null for the trail's.",
                },
                "until_ns": {**_TIME_OR_NULL, "description": "The moment behind the period."},
                "filters": {
                    "type": "object",
                    "additionalProperties": {"type": "array", "items": _TEXT},
                    "description": "The actors and services that were asked for.",
                },
                "totals": {
                    **_object(
                        {
                            "events": _COUNT,
                            "actors": _COUNT,
                            **_RESULTS,
                            "failed_logins": _COUNT,
                            "privileged": _COUNT,
                            **_LOSSES,
                        }
                    ),
                    "description": "Counts over the period.",
                },
                **{name: _table(says, columns, name) for name, (says, columns) in TABLES.items()},
                "begins_ns": {**_TIME_OR_NULL, "description": "The first event that the trail still has, of any time."},
                "damaged": {**_COUNT, "description": "Pieces of bytes that are not a line."},
                "other_records": {**_COUNT, "description": "Records of other programs."},
                "conclusion": {**_TEXT, "description": "The verdict of the verification in a sentence."},
                "verification": {
                    "anyOf": [{"$ref": "#/$defs/VerifyReport"}, {"type": "null"}],
                    "description": "What `verify --json` prints; null for a log of events.",
                },
                "limits": {"type": "array", "items": _TEXT, "description": "What a reader must know of every report."},
            }
        ),
        "$defs": {**definitions, "VerifyReport": verification},
    }


def _table(says: str, columns: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = _object(
        {
            "rows": {"type": "array", "items": _object(columns)},
            "more": {**_COUNT, "description": "How many rows are left out."},
        }
    )
    if name == "new_actors":
        table["type"] = ["object", "null"]
    return {**table, "description": says}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }
