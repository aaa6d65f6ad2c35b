"""Logs for the tests of replay: events as Feast writes them, and a source that reads them."""

from __future__ import annotations

from pathlib import Path

from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal
from otel_audit.replaying.source import ReplaySource

__all__ = ["HEADER", "a_line", "a_log", "a_source"]

HEADER = {"resource": {"service.name": "shop"}, "scope": {"name": "otel_audit", "version": "0"}}


def a_line(number: int, **more: object) -> str:
    """An event with Feast's fields only; its time is that many seconds after the start of 2026."""
    event = AuditEvent(
        event_type="mcp.tools.call",
        timestamp=f"2026-01-01T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}.250Z",
        request_id=f"r{number}",
        trace_id=f"{number:032x}" if number else None,
        span_id=f"{number:016x}" if number else None,
        principal=AuditPrincipal(username="ann"),
        action=AuditAction(mcp_tool="get_online_features"),
        outcome="success",
    )
    return event.model_copy(update=more).to_jsonl()


def a_log(path: Path, count: int, *, ids: bool = False) -> list[str]:
    """A log of so many lines. `ids`: they have the names `event-1`, `event-2` and so on as their ids."""
    lines = [a_line(number, **({"event_id": f"event-{number}"} if ids else {})) for number in range(1, count + 1)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return lines


def a_source(path: Path) -> ReplaySource:
    return ReplaySource(path, HEADER)
