"""What the servers of these tests offer, whatever SDK serves it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from opentelemetry import trace
from starlette.types import Receive, Scope, Send

import otel_audit
from otel_audit.integrations.asgi import AuditMiddleware
from otel_audit.integrations.mcp import current_event
from otel_audit.integrations.parent import parent_id

__all__ = ["NAMES", "RESOURCE_URI", "SECRET", "TOKENS", "Tools"]

RESOURCE_URI = "features://driver_stats"
SECRET = "the password is hunter2-f00ba4"
TOKENS: dict[str, dict[str, Any]] = {
    "token-of-alice": {
        "client_id": "notebook",
        "scopes": ["features:read", "features:write"],
        "sub": "alice",
        "iss": "https://issuer.example",
    },
    "token-of-a-service": {"client_id": "batch-job", "scopes": ["features:read"]},
}
NAMES = ("add", "choke", "deny", "fail", "forbid", "lookup", "mark", "query", "repeat", "report", "wait")

Report = Callable[[float], Awaitable[None]]


class Tools:
    """The tools, by name; `audit` is the logger of the server and of its REST interface."""

    def __init__(self, audit: otel_audit.AuditLogger) -> None:
        rest = AuditMiddleware(answer, audit=audit)
        self._rest = httpx.AsyncClient(transport=httpx.ASGITransport(rest), base_url="http://rest")

    async def add(self, a: int, b: int) -> str:
        await asyncio.sleep(0)
        return str(a + b)

    async def fail(self) -> str:
        raise ValueError(SECRET)

    async def repeat(self, value: Any) -> str:
        return repr(value)

    async def choke(self, value: Any) -> str:
        raise ValueError(repr(value))

    async def deny(self) -> str:
        event = current_event()
        assert event is not None
        event.outcome, event.reason = "denied", "not the owner"
        raise RuntimeError("no")

    async def forbid(self) -> str:
        raise PermissionError(SECRET)

    async def mark(self, path: str) -> str:
        Path(path).touch()
        return "marked"

    async def query(self) -> str:
        """Makes a span of its own, and says which it is."""
        with trace.get_tracer("tools").start_as_current_span("db.query") as span:
            return f"{span.get_span_context().span_id:016x}"

    async def lookup(self) -> str:
        """Asks the REST interface that the service has beside MCP."""
        response = await self._rest.get("/features")
        return str(response.json()["event_id"])

    async def wait(self, report: Report) -> str:
        await report(0.5)
        await asyncio.sleep(60)
        return "waited"

    async def report(self, report: Report) -> str:
        for step in (0.25, 0.5, 1.0):
            await report(step)
        return "reported"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The REST interface, which says what event it runs in."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"event_id": parent_id()}).encode()})
