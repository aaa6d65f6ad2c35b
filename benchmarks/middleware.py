"""What the ASGI middleware costs a request, beside the bare event."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import contenders
from benchmarks.measurement import Series, interleaved
from benchmarks.spans import active_span
from otel_audit import AuditAction, AuditEvent, AuditLogger, AuditMiddleware, AuditPrincipal, AuditSource

__all__ = ["BARE_ROW", "HELPER_ROW", "MIDDLEWARE_ROW", "US", "application", "middleware", "no_more", "taken"]

US: Final = "us"
HELPER_ROW: Final = "log_http_request, with fewer facts"
BARE_ROW: Final = "the same event, log(AuditEvent(...))"
MIDDLEWARE_ROW: Final = "AuditMiddleware, a request"

_ALICE: Final = AuditPrincipal(username="alice", roles=["reader"], auth_type="oidc")
_PATH: Final = "/feature-views/driver_stats"
_AGENT: Final = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
_HEADERS: Final = [
    (b"host", b"features.example:8080"),
    (b"user-agent", _AGENT.encode()),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"connection", b"keep-alive"),
    (b"authorization", b"Bearer 2YotnFZFEjr1zCsicMWpAA"),
    (b"x-request-id", b"0b5d7c1e-5f5e-4b3a-9a60-0f3f4c1a7b11"),
]


class _Route:
    """As a router leaves it in the scope."""

    path = "/feature-views/{name}"
    endpoint = None


def middleware(
    requests: int, rounds: int, directory: Path, tell: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Microseconds a request of an application that does nothing, that application taken off; and of bare events."""

    def of(measure: Callable[[AuditLogger, int], float]) -> Callable[[], Mapping[str, float]]:
        return lambda: {US: _in_a_journal(measure, requests, directory)}

    return interleaved({HELPER_ROW: of(_helper), BARE_ROW: of(_model), MIDDLEWARE_ROW: of(_requests)}, rounds, tell)


def _in_a_journal(measure: Callable[[AuditLogger, int], float], count: int, directory: Path) -> float:
    with (
        tempfile.TemporaryDirectory(dir=directory) as place,
        contenders.ours(Path(place), ()) as (_, logger),
        active_span(),
    ):
        measure(logger, 10)  # what is made at the first event, such as a stream, is not the cost of one
        return measure(logger, count)


def _timed(log: Callable[[], object], count: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(count):
        log()
    return (time.perf_counter_ns() - started) / count / 1000


def _helper(logger: AuditLogger, count: int) -> float:
    source = AuditSource(ip="10.0.0.7", transport="http", user_agent=_AGENT)
    return _timed(
        lambda: logger.log_http_request(
            method="GET", path=_PATH, principal=_ALICE, source=source, duration_ms=1.25, status_code=200
        ),
        count,
    )


def _model(logger: AuditLogger, count: int) -> float:
    def log() -> None:
        logger.log(
            AuditEvent(
                event_type="http.request",
                principal=_ALICE,
                source=AuditSource(ip="10.0.0.7", transport="http", user_agent=_AGENT),
                action=AuditAction(path=_PATH, method="GET"),
                outcome="success",
                duration_ms=1.25,
                detail=f"GET {_PATH} -> 200",
                status_code=200,
                attributes={"http.route": _Route.path},
            )
        )

    return _timed(log, count)


def _requests(logger: AuditLogger, count: int) -> float:
    alone = asyncio.run(_calls(application, count))
    with_events = asyncio.run(_calls(AuditMiddleware(application, audit=logger), count))
    return with_events - alone


async def _calls(app: Callable[[Any, Any, Any], Awaitable[None]], count: int) -> float:
    started = time.perf_counter_ns()
    for _ in range(count):
        await app(
            {"type": "http", "method": "GET", "path": _PATH, "headers": _HEADERS, "client": ("10.0.0.7", 5000)},
            no_more,
            taken,
        )
    return (time.perf_counter_ns() - started) / count / 1000


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer as a route of a framework does that knows its caller."""
    scope["route"] = _Route
    scope["state"] = {"principal": _ALICE}
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def no_more() -> dict[str, Any]:
    """Receive a request without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def taken(message: Any) -> None:
    """Send to a client that takes everything."""
