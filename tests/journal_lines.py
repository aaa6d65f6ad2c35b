"""Journal lines and a segment header for tests, as the journal writes them."""

from __future__ import annotations

import json
from typing import Any

from otel_audit.event import AuditEvent

__all__ = ["HEADER", "STREAM_ID", "line_of", "raw_line"]

STREAM_ID = "0199aabb-ccdd-7eef-8011-223344556677"

HEADER: dict[str, Any] = {
    "format": 1,
    "stream_id": STREAM_ID,
    "number": 1,
    "resource": {
        "service.name": "feature-server",
        "service.instance.id": "0199aabb-0000-7000-8000-000000000001",
        "telemetry.sdk.language": "python",
        "process.pid": 4711,
        "process.command_args": ["python", "-m", "app"],
    },
    "resource_schema_url": "https://opentelemetry.io/schemas/1.37.0",
    "scope": {"name": "otel_audit", "version": "0.1.0"},
    "host_id": "4c4c4544",
    "boot_id": "9d2f0e35",
    "pid": 4711,
}


def line_of(event: AuditEvent, *, seq: int = 2, **journal: Any) -> bytes:
    """The event as a line of the journal, without its newline."""
    return raw_line(json.loads(event.to_jsonl()), seq=seq, **journal)


def raw_line(event: dict[str, Any], *, seq: int = 2, **journal: Any) -> bytes:
    """Any JSON object with the journal's keys behind it: also one that no event could be."""
    tail = {
        "time_ns": 1790000000123456789,
        "observed_ns": 1790000000123999999,
        "stream_id": STREAM_ID,
        "seq": seq,
        "prev_hash": "5e" * 32,
        **journal,
    }
    return json.dumps({**event, **tail}, ensure_ascii=False, separators=(",", ":")).encode()
