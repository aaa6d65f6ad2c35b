"""The event of a request has the ids of the server span of that request, wherever the span lies.

The instrumentations are the real ones. Each cell of the table is a test: who is around whom, and how the request ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from applications import CANNOT_BE, ORDERS, Order, build, uninstrument
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from otel_audit import AuditLogger
from tests.chain_check import application_events
from tests.recording import a_trail

Ids = tuple[str, str, int]


@dataclass(frozen=True)
class Request:
    """A request, how it ends, and whether the one who calls samples its trace."""

    path: str
    status: int | None
    outcome: str
    is_sampled: bool = True
    says: str | None = None
    """What is said over a WebSocket."""
    leaves: bool = False


REQUESTS = {
    "200": Request("/status/200", 200, "success"),
    "200 not sampled": Request("/status/200", 200, "success", is_sampled=False),
    "401": Request("/status/401", 401, "denied"),
    "404": Request("/nowhere", 404, "failure"),
    "500 raised": Request("/boom", 500, "error"),
    "500 raised, not sampled": Request("/boom", 500, "error", is_sampled=False),
    "503 returned": Request("/status/503", 503, "error"),
    "stream": Request("/stream", 200, "success"),
    "stream, not sampled": Request("/stream", 200, "success", is_sampled=False),
    "broken stream": Request("/broken", 200, "error"),
    "WebSocket": Request("/socket", 101, "success", says="hello"),
    "WebSocket, not sampled": Request("/socket", 101, "success", is_sampled=False, says="hello"),
    "broken WebSocket": Request("/socket", 101, "error", says="break"),
    "client left": Request("/endless", 200, "cancelled", leaves=True),
}

EXPORTED = InMemorySpanExporter()


@pytest.fixture(scope="module", autouse=True)
def tracing() -> None:
    provider = TracerProvider()  # its sampler does what the caller's `traceparent` says
    provider.add_span_processor(SimpleSpanProcessor(EXPORTED))
    trace.set_tracer_provider(provider)


@dataclass
class Seen:
    """What became of the requests, in their order: the server span of each, and its event."""

    spans: list[list[Ids]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def hook(self, span: Any, scope: Any) -> None:
        """OpenTelemetry calls it with the server span that it has begun."""
        ids = span.get_span_context()
        self.spans[-1].append((format_trace_id(ids.trace_id), format_span_id(ids.span_id), int(ids.trace_flags)))

    def of(self, name: str) -> tuple[Ids, dict[str, Any]]:
        place = list(REQUESTS).index(name)
        (ids,) = self.spans[place]
        return ids, self.events[place]


@pytest.fixture(scope="module", params=ORDERS, ids=str)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """All requests to an application, one after the other, and what was recorded of them."""
    order: Order = request.param
    directory: Path = tmp_path_factory.mktemp("audit")
    seen = Seen()
    with AuditLogger(a_trail(directory)) as audit:
        try:
            app = build(order, audit, seen.hook)
            for number, each in enumerate(REQUESTS.values()):
                seen.spans.append([])
                with contextlib.suppress(RuntimeError, BaseExceptionGroup):
                    asyncio.run(call(app, each, number))
        finally:
            uninstrument()
    seen.events = application_events(directory)
    assert len(seen.events) == len(REQUESTS)
    return seen


async def call(app: Any, request: Request, number: int) -> None:
    """Ask as a server does. Source: ASGI specification 3.0."""
    has_left = asyncio.Event()
    is_socket = request.says is not None
    incoming: list[dict[str, Any]] = (
        [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": request.says}]
        if is_socket
        else [{"type": "http.request", "body": b"", "more_body": False}]
    )

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop(0)
        await has_left.wait()
        return {"type": "websocket.disconnect" if is_socket else "http.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        if request.leaves and message.get("body"):
            has_left.set()
            await asyncio.sleep(0)

    traceparent = f"00-{number + 1:032x}-{1:016x}-{int(request.is_sampled):02x}"
    scope = {
        "type": "websocket" if is_socket else "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "ws" if is_socket else "http",
        "path": request.path,
        "raw_path": request.path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"shop.example"), (b"traceparent", traceparent.encode())],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    if is_socket:
        del scope["method"]
    try:
        async with asyncio.timeout(10):
            await app(scope, receive, send)
    finally:
        for _ in range(40):  # the event of an answer that failed is recorded some turns of the loop later
            await asyncio.sleep(0)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_event_has_the_ids_of_the_server_span(seen: Seen, name: str) -> None:
    request = REQUESTS[name]

    span, event = seen.of(name)

    assert (event["trace_id"], event["span_id"], event["trace_flags"] & 1) == (*span[:2], int(request.is_sampled))
    assert (event.get("status_code"), event["outcome"]) == (request.status, request.outcome)
    exported = [each.kind for each in EXPORTED.get_finished_spans() if format_span_id(each.context.span_id) == span[1]]
    assert exported == ([SpanKind.SERVER] if request.is_sampled else [])


def test_each_framework_is_in_the_table_in_each_way_or_said_to_be_impossible() -> None:
    ways = {(order.framework, order.way) for order in ORDERS}

    assert len(ways | CANNOT_BE.keys()) == 9
    assert not ways & CANNOT_BE.keys()
