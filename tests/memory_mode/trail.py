"""A trail in memory, and what of it arrived at the server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.event import AuditEvent
from otel_audit.journal.journal import Receipt
from otel_audit.logger import AuditLogger
from otel_audit.settings import Settings
from otel_audit.trail import Stats, Trail
from tests.delivery.audited_server import AuditedServer
from tests.servers.otlp_server import Answer, OtlpServer, accepted

__all__ = [
    "DOWN",
    "MIB",
    "REFUSED",
    "adds_up",
    "arrived",
    "chained",
    "ids",
    "kept",
    "log",
    "recording",
    "settings_for",
    "told",
    "told_in",
]

DOWN = Answer(503)
REFUSED = Answer(400, b"bad record")
MIB = 1024 * 1024


def settings_for(server: OtlpServer, directory: Path | None, **overrides: object) -> Settings:
    given = {
        "durability": "memory",
        "directory": directory,
        "endpoint": server.endpoint,
        "protocol": "http/protobuf",
        "batch_delay_s": 0.05,
        "backoff_cap_s": 1,
        **overrides,
    }
    return Settings.load({}, given)


@contextmanager
def recording(settings: Settings, **options: Any) -> Iterator[AuditLogger]:
    """A logger in memory, closed at the end."""
    trail = Trail(settings, **options)
    logger = AuditLogger(trail, on_loss=settings.on_loss, notices=trail.notices)
    try:
        yield logger
    finally:
        logger.close(timeout_s=2)


def log(audit: AuditLogger, *names: object, detail: str = "") -> list[Receipt]:
    receipts = [audit.log(AuditEvent(event_type="test", event_id=str(name), detail=detail)) for name in names]
    return [receipt for receipt in receipts if receipt is not None]


def kept(receipts: Sequence[Receipt]) -> list[str]:
    """The ids of those that have a place in a stream."""
    return [str(receipt.event_id) for receipt in receipts if receipt.seq is not None]


def arrived(server: AuditedServer) -> dict[str, list[dict[str, Any]]]:
    """The accepted events of each stream in order, each once, after a check of their chain from its first line on."""
    streams: dict[str, dict[int, bytes]] = {}
    for request, answer in zip(list(server.requests), list(server.answers), strict=False):
        if answer != accepted():
            continue
        for logs in ExportLogsServiceRequest.FromString(request.body).resource_logs:
            for record in (each for scope in logs.scope_logs for each in scope.log_records):
                line = record.body.string_value.encode()
                event = json.loads(line)
                assert streams.setdefault(event["stream_id"], {}).setdefault(event["seq"], line) == line
    return {stream: chained([lines[seq] for seq in sorted(lines)]) for stream, lines in streams.items()}


def chained(lines: list[bytes]) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in lines]
    assert events[0]["seq"] == 1
    for before, after in pairwise(zip(lines, events, strict=True)):
        assert after[1]["prev_hash"] == sha256(before[0]).hexdigest()
        assert after[1]["seq"] == before[1]["seq"] + 1
    return events


def ids(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["event_id"] for event in events if "system" not in event]


def told(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many losses the gap lines tell, by reason."""
    counts: dict[str, int] = {}
    for event in events:
        for reason, loss in event.get("gap", {}).get("by_reason", {}).items():
            counts[reason] = counts.get(reason, 0) + loss["count"]
    return counts


def told_in(streams: dict[str, list[dict[str, Any]]]) -> int:
    return sum(sum(told(events).values()) for events in streams.values())


def adds_up(stats: Stats) -> bool:
    parts = (stats.exported, stats.pending, stats.quarantined, stats.dropped)
    return stats.emitted == sum(parts) and min(parts) >= 0
