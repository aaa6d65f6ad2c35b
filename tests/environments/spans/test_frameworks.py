"""Frameworks that are not Starlette: the route of a request, its event to fill in, and its span.

Litestar leaves its route in the scope. Django and Quart do not, and need the few lines of docs/integrations.md.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import path
from litestar import Litestar, MediaType
from litestar import get as litestar_get
from litestar.plugins.opentelemetry import OpenTelemetryConfig
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id
from quart import Quart, Response, request

from otel_audit import AuditMiddleware, AuditResource
from otel_audit.integrations.asgi import current_event
from tests.chain_check import application_events
from tests.integrations.serving import a_logger

PROVIDER = TracerProvider(shutdown_on_exit=False)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def fill(order: int) -> None:
    event = current_event()
    assert event is not None
    event.resource = AuditResource(type="order", name=str(order))


def asked(app: Any, directory: Path, *paths: str) -> list[tuple[Any, ...]]:
    """Status, route and resource of each request that is made of an application."""
    events = events_of(app, directory, *paths)
    return [
        (event["status_code"], event.get("attributes", {}).get("http.route"), event["resource"]["name"])
        for event in events
    ]


def events_of(app: Any, directory: Path, *paths: str) -> list[dict[str, Any]]:
    audit = a_logger(directory)
    audited = AuditMiddleware(app, audit=audit)

    async def calls() -> None:
        for each in paths:
            await audited(a_scope(each), receiving(), into_nothing)

    asyncio.run(calls())
    audit.close()
    return application_events(directory)


def a_scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"shop.example")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


def receiving() -> Any:
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not body:
            await asyncio.Event().wait()
        return body.pop()

    return receive


async def into_nothing(message: Any) -> None:
    return


@litestar_get("/orders/{order:int}", media_type=MediaType.TEXT, sync_to_thread=True)
def read_order(order: int) -> str:
    fill(order)
    return ""


def test_the_route_of_litestar_is_in_its_scope(directory: Path) -> None:
    app = Litestar([read_order], openapi_config=None)

    assert asked(app, directory, "/orders/7", "/nowhere") == [(200, "/orders/{order}", "7"), (404, None, "")]


def test_the_span_of_litestars_own_middleware_is_that_of_the_request(directory: Path) -> None:
    seen: list[str] = []

    def hook(span: Any, scope: Any) -> None:
        seen.append(format_span_id(span.get_span_context().span_id))

    tracing = OpenTelemetryConfig(tracer_provider=PROVIDER, server_request_hook_handler=hook)
    app = Litestar([read_order], openapi_config=None, middleware=[tracing.middleware])

    (event,) = events_of(app, directory, "/orders/7")

    assert [event["span_id"]] == seen


def a_quart_app() -> Quart:
    app = Quart("shop")

    @app.get("/orders/<int:order>")
    def read(order: int) -> str:
        fill(order)
        return ""

    return app


def test_quart_gives_no_route_unless_the_application_names_it(directory: Path, tmp_path: Path) -> None:
    app = a_quart_app()

    assert asked(app, directory, "/orders/7") == [(200, None, "7")]

    @app.after_request
    async def name_the_route(response: Response) -> Response:
        event = current_event()
        if event is not None and request.url_rule is not None:
            event.attributes = {"http.route": request.url_rule.rule}
        return response

    asking = asked(app, tmp_path / "named", "/orders/7", "/nowhere")
    assert asking == [(200, "/orders/<int:order>", "7"), (404, None, "")]


def django_view(request: HttpRequest, order: int) -> HttpResponse:
    fill(order)
    return HttpResponse("")


async def refuse(request: HttpRequest, order: int) -> HttpResponse:
    fill(order)
    raise PermissionDenied


urlpatterns = [path("orders/<int:order>", django_view), path("refused/<int:order>", refuse)]


class NameTheRoute:
    """A middleware of Django, in its setting MIDDLEWARE."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = self.get_response(request)
        return response

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        event = current_event()
        if event is not None and request.resolver_match is not None:
            event.attributes = {"http.route": "/" + request.resolver_match.route}


@pytest.fixture(scope="module")
def spans_of_django() -> list[str]:
    """Django, set up for this process, and the ids of the spans that its instrumentation begins."""
    seen: list[str] = []

    def hook(span: Any, request: Any) -> None:
        seen.append(format_span_id(span.get_span_context().span_id))

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=[], SECRET_KEY="for a test")
    DjangoInstrumentor().instrument(tracer_provider=PROVIDER, request_hook=hook)
    django.setup()
    return seen


def test_django_gives_neither_route_nor_span_to_a_request_that_fills_nothing_in(
    directory: Path, spans_of_django: list[str]
) -> None:
    (event,) = events_of(get_asgi_application(), directory, "/nowhere")

    assert len(spans_of_django) == 1
    assert event["status_code"] == 404
    assert not {"attributes", "span_id"} & event.keys()


def test_a_middleware_of_django_names_the_route_and_shows_the_span(
    directory: Path, spans_of_django: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "MIDDLEWARE", [*settings.MIDDLEWARE, f"{__name__}.NameTheRoute"])
    spans_of_django.clear()

    events = events_of(get_asgi_application(), directory, "/orders/7", "/refused/8")

    assert [(e["status_code"], e["attributes"]["http.route"], e["resource"]["name"], e["outcome"]) for e in events] == [
        (200, "/orders/<int:order>", "7", "success"),
        (403, "/refused/<int:order>", "8", "denied"),
    ]
    assert [event["span_id"] for event in events] == spans_of_django
