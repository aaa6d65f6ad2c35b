"""The span of each call, and of what the tool does, under OpenTelemetry's instrumentation, over each transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Service
from sdk import IS_SDK1, MODES

from tests.servers.polling import poll
from tests.servers.span_file import Span, spans_in

CALL = "mcp.tools.call"
SAID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CALLS = 3

SERVERS = ["sdk1-fastmcp"] if IS_SDK1 else ["sdk2-mcpserver", "fastmcp"]
# Where the instrumentation is: inside of our middleware, around it, and without it. SDK 1.x begins no span of a call.
ARRANGEMENTS = [
    *(
        (name, *how, not IS_SDK1)
        for name in SERVERS
        for how in (("http", "otel audit"), ("stateless", "otel"), ("sse", "audit otel"))
    ),
    ("sdk1-lowlevel" if IS_SDK1 else "sdk2-lowlevel", "http", "audit otel", not IS_SDK1),
    *(("sdk1-fastmcp", transport, "audit otel", True) for transport in ("http", "stateless", "sse") if IS_SDK1),
]


@dataclass
class Traced:
    """A service with its spans, and the calls that were made of it by the id of the request.

    `has_posts`: what carried them is recorded too.
    """

    service: Service
    path: Path
    has_posts: bool
    seen: dict[str, str] = field(default_factory=dict)

    def call(self, mode: str, *numbered: tuple[str, dict[str, str] | None]) -> None:
        """Calls of one session, each with the id of its request and what it says in `_meta`."""
        headers: dict[str, str] = {}

        async def work() -> None:
            async with asyncio.timeout(120), self.service.connect(mode, headers=headers) as session:
                for request_id, meta in numbered:
                    headers["x-request-id"] = request_id
                    self.seen[request_id], _ = await session.call("query", meta=meta)

        asyncio.run(work())

    def spans(self) -> dict[str, Span]:
        """By id, as soon as the requests of all calls have ended."""

        return poll(
            lambda: spans_in(self.path),
            until=lambda spans: (
                all(spans[seen].parent in spans for seen in self.seen.values())
                and {request_id_of(span) for span in spans.values()} >= set(self.seen)
            ),
            what="the spans of all requests",
        )

    def events(self) -> dict[str, dict[str, Any]]:
        """Those of the calls, by the id that its request had."""
        if self.has_posts:
            self.service.wait_for(len(self.seen), CALL)
        calls = [event for event in self.service.all_events() if event["event_type"] == CALL]
        return dict(zip(self.seen, calls, strict=True))


@pytest.fixture
def start(run_service: Callable[..., Service], tmp_path: Path) -> Callable[..., Traced]:
    def started(name: str, transport: str, around: str, **more: str) -> Traced:
        extra = {
            "SPANS": str(tmp_path / "spans"),
            "TRANSPORT": transport,
            "AROUND": around,
            "OTEL_AUDIT_TRUSTED_PROXIES": "127.0.0.1",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": "x-request-id",
        }
        return Traced(run_service(name, {**extra, **more}), tmp_path / "spans", "audit" in around)

    return started


def request_id_of(span: Span) -> str | None:
    """The header of the request, if it is a server span."""
    return next(iter(span.attributes.get("http.request.header.x_request_id", [])), None)


def root_of(span: Span, spans: dict[str, Span]) -> Span:
    """The outermost span of this process that a span is part of."""
    while span.parent in spans:
        span = spans[span.parent]
    return span


@pytest.mark.parametrize(("name", "transport", "around", "has_own"), ARRANGEMENTS)
def test_a_tool_sees_the_span_of_its_request_and_the_event_is_of_its_own_span_of_the_message_or_of_the_request(
    start: Callable[..., Traced], name: str, transport: str, around: str, has_own: bool
) -> None:
    traced = start(name, transport, around, **({"SPAN_OF_EACH_CALL": "1"} if has_own and IS_SDK1 else {}))
    modes = MODES[:1] if transport == "sse" else MODES
    silent = [f"{mode}-{number}" for mode in modes for number in range(CALLS)]
    for mode in modes:
        traced.call(
            mode,
            *((each, None) for each in silent if each.startswith(mode)),
            (f"{mode}-said", {"traceparent": SAID}),
        )

    spans, events = traced.spans(), traced.events()
    for request_id, seen in traced.seen.items():
        query, event = spans[seen], events[request_id]
        assert query.parent is not None
        around_tool = spans[query.parent]
        is_silent = request_id in silent
        # What begins a span outside of us sees, with SDK 1.x, the first request of the session.
        if not has_own or (is_silent and not IS_SDK1):
            assert request_id_of(root_of(query, spans)) == request_id
        if has_own or is_silent:
            assert (event["trace_id"], event["span_id"]) == (around_tool.trace, around_tool.id)
        else:
            assert [event["trace_id"], event["span_id"]] == SAID.split("-")[1:3]
        assert (request_id_of(around_tool) is None) is has_own
        if has_own and not is_silent and name != "fastmcp":  # which goes on with the request, if that has a span
            assert [around_tool.trace, around_tool.parent] == SAID.split("-")[1:3]

    if "audit" in around:
        posts = {event["event_id"]: event for event in traced.service.all_events() if "http" in event["event_type"]}
        assert [event["request_id"] for event in events.values()] == list(events)
        assert [posts[event["parent_id"]]["request_id"] for event in events.values()] == list(events)


@pytest.mark.parametrize("transport", ["http", "sse"])
def test_the_ids_of_a_span_that_is_not_sampled_are_recorded(start: Callable[..., Traced], transport: str) -> None:
    traced = start(SERVERS[0], transport, "otel", OTEL_TRACES_SAMPLER="always_off")

    traced.call(MODES[0], ("1", None), ("2", None))

    events = traced.events().values()
    assert {event["trace_flags"] for event in events} <= {0, 2}
    assert len({event["trace_id"] for event in events}) == 2


@pytest.mark.parametrize("transport", ["http", "stateless"])
def test_a_span_that_the_client_named_is_not_believed_where_nothing_is_traced(
    run_service: Callable[..., Service], transport: str
) -> None:
    service = run_service(SERVERS[0], {"TRANSPORT": transport, "AROUND": "otel"})  # without a provider of spans

    async def work() -> None:
        async with asyncio.timeout(60), service.connect(headers={"traceparent": SAID}) as session:
            await session.call("query")

    asyncio.run(work())

    event = service.event()
    assert "trace_id" not in event
    assert event["attributes"]["audit.request.traceparent"] == SAID
