"""The server span of a request, found wherever a tracer of the application's own has put it.

Beside OpenTelemetry's own instrumentations: tests/environments/spans.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import NoOpTracer, SpanKind, Tracer, get_current_span
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from otel_audit import AuditMiddleware
from otel_audit.integrations.asgi import current_event
from otel_audit.settings import OnLoss
from tests.chain_check import application_events
from tests.integrations.serving import a_logger, pass_on

REMOTE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def a_tracer(*, is_sampled: bool = True) -> Tracer:
    return TracerProvider(sampler=ALWAYS_ON if is_sampled else ALWAYS_OFF, shutdown_on_exit=False).get_tracer("test")


def events_of_call(app: Any, directory: Path, *headers: tuple[bytes, bytes], **options: Any) -> list[dict[str, Any]]:
    """What one request leaves, without a server."""
    body = [{"type": "http.request", "body": b"{}"}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        return

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": list(headers)}
    audit = a_logger(directory, **options)
    asyncio.run(AuditMiddleware(app, audit=audit)(scope, receive, send))
    audit.close()
    kept: list[Any] = [value for key, value in scope.items() if key.startswith("otel_audit.")]
    assert [exchange.scope for exchange in kept] == [{}]  # no circle: both are freed at once
    return application_events(directory)


class Traced:
    """A middleware with a server span of its own, as many an application has one."""

    def __init__(self, app: Any, tracer: Tracer, *, kind: SpanKind = SpanKind.SERVER) -> None:
        self._app = app
        self._tracer = tracer
        self._kind = kind
        self.ids: tuple[str, str] = ("", "")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._tracer.start_as_current_span("request", kind=self._kind) as span:
            context = span.get_span_context()
            self.ids = (f"{context.trace_id:032x}", f"{context.span_id:016x}")
            await self._app(scope, receive, send)


def answering_inside(part: str, tracer: Tracer) -> Any:
    """An application that receives, or sends, inside of a span that is a part of its request."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if part == "receive":
            with tracer.start_as_current_span("http receive"):
                await receive()
        with tracer.start_as_current_span("http send"):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    return app


@pytest.mark.parametrize("kind", [SpanKind.SERVER, SpanKind.INTERNAL], ids=str)
@pytest.mark.parametrize("part", ["receive", "send"])
def test_a_part_of_a_request_is_not_taken_for_the_request(directory: Path, part: str, kind: SpanKind) -> None:
    tracer = a_tracer()
    traced = Traced(answering_inside(part, tracer), tracer, kind=kind)

    (event,) = events_of_call(traced, directory)

    assert (event["trace_id"], event["span_id"]) == traced.ids


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await request.body())


@pytest.mark.parametrize("is_sampled", [True, False], ids=["sampled", "not sampled"])
def test_a_span_inside_of_middleware_with_a_task_of_its_own_is_seen_when_the_body_is_read(
    directory: Path, is_sampled: bool
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await echo(Request(scope, receive)))(scope, receive, send)

    traced = Traced(app, a_tracer(is_sampled=is_sampled))

    (event,) = events_of_call(BaseHTTPMiddleware(traced, dispatch=pass_on), directory)

    assert (event["trace_id"], event["span_id"], event["trace_flags"] & 1) == (*traced.ids, int(is_sampled))


def test_the_span_around_the_middleware_counts_before_one_inside_of_it(directory: Path) -> None:
    tracer = a_tracer()
    inner = Traced(answering_inside("send", tracer), tracer)

    with tracer.start_as_current_span("around") as span:
        (event,) = events_of_call(inner, directory)

    assert event["span_id"] == f"{span.get_span_context().span_id:016x}"
    assert not get_current_span().get_span_context().is_valid


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ([REMOTE], REMOTE.decode()),
        ([REMOTE, REMOTE], None),
        ([REMOTE.upper()], None),
        ([REMOTE + b"-more"], None),
        ([b"00-" + b"0" * 32 + REMOTE[35:]], None),
        ([b"\xff" * 55], None),
        ([], None),
    ],
    ids=["one", "two", "upper case", "longer", "no trace", "bytes", "none"],
)
def test_the_traceparent_of_a_request_without_a_span_is_kept_and_not_believed(
    directory: Path, headers: list[bytes], kept: str | None
) -> None:
    app = answering_inside("send", NoOpTracer())  # without the SDK, which an instrumentation may lack too

    (event,) = events_of_call(app, directory, *((b"traceparent", each) for each in headers))

    assert (event.get("attributes") or {}).get("audit.request.traceparent") == kept
    assert not {"trace_id", "span_id", "trace_flags"} & event.keys()


def test_the_traceparent_of_a_request_with_a_span_is_not_repeated(directory: Path) -> None:
    tracer = a_tracer()

    begin, end = events_of_call(
        Traced(answering_inside("send", tracer), tracer), directory, (b"traceparent", REMOTE), on_loss=OnLoss.CLOSED
    )

    assert (begin["attributes"], "span_id" in begin) == ({"audit.request.traceparent": REMOTE.decode()}, False)
    assert ("attributes" in end, "span_id" in end) == (False, True)


@pytest.mark.parametrize("on_loss", list(OnLoss))
@pytest.mark.parametrize("place", ["around", "inside"])
def test_the_span_that_a_client_names_is_never_taken_for_that_of_its_request(
    directory: Path, place: str, on_loss: OnLoss
) -> None:
    context = extract({"traceparent": REMOTE.decode()}, Context())

    async def traced(scope: Any, receive: Any, send: Any) -> None:
        with NoOpTracer().start_as_current_span("request", context):  # as an instrumentation does without the SDK
            assert get_current_span().get_span_context().is_valid
            await answering_inside("send", NoOpTracer())(scope, receive, send)

    token = attach(context if place == "around" else Context())
    events = events_of_call(traced, directory, (b"traceparent", REMOTE), on_loss=on_loss)
    detach(token)

    for event in events:
        assert event["attributes"] == {"audit.request.traceparent": REMOTE.decode()}
        assert not {"trace_id", "span_id", "trace_flags"} & event.keys()


def test_a_handler_that_fills_in_its_event_shows_the_span_that_is_active_there(directory: Path) -> None:
    async def view(scope: Any, receive: Any, send: Any) -> None:
        with a_tracer().start_as_current_span("view", kind=SpanKind.SERVER) as span:
            assert current_event() is not None
            ids.append(f"{span.get_span_context().span_id:016x}")
        await answering_inside("send", NoOpTracer())(scope, receive, send)  # behind the span, as Django does

    ids: list[str] = []

    (event,) = events_of_call(view, directory)

    assert [event["span_id"]] == ids
