"""An ASGI service for the tests: every request is one event, whose id the answer carries.

`closes` closes its logger in the lifespan shutdown, as the documentation tells; `careless` forgets it; `audited` leaves
events and close to the middleware. `/ready` is no event. `SERVICE_FAILS_AT=import` or `startup` logs an event, says its
id on stdout, and fails there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import otel_audit
from otel_audit import AuditEvent, AuditLogger, Receipt
from otel_audit.integrations.asgi.exchange import exchange_of
from tests.end_to_end.background import log_in_the_background

__all__ = ["audited", "careless", "closes"]


async def ready(request: Request) -> Response:
    return PlainTextResponse("ready")


async def in_a_task(request: Request) -> Response:
    return answer(await audit.alog(an_event("task")))


def in_a_thread(request: Request) -> Response:
    return answer(audit.log(an_event("thread")))


async def by_the_middleware(request: Request) -> Response:
    exchange = exchange_of(request.scope)
    assert exchange is not None
    return PlainTextResponse(str(os.getpid()), headers={"event-id": exchange.event_id})


def an_event(place: str) -> AuditEvent:
    return AuditEvent(event_type="http.request", outcome="success", detail=place)


def answer(receipt: Receipt | None) -> Response:
    assert receipt is not None
    assert receipt.event_id is not None
    return PlainTextResponse(str(os.getpid()), headers={"event-id": receipt.event_id})


@asynccontextmanager
async def closing(app: Starlette) -> AsyncIterator[None]:
    fail_at("startup", audit)
    yield
    audit.close()


def fail_at(place: str, audit: AuditLogger) -> None:
    if os.environ.get("SERVICE_FAILS_AT") == place:
        receipt = audit.log(an_event(place))
        assert receipt is not None
        print(f"acknowledged {receipt.event_id}", flush=True)
        raise RuntimeError(f"fails at {place}, as it was told to")


audit = otel_audit.configure()
log_in_the_background(audit)
fail_at("import", audit)
routes = [Route("/ready", ready), Route("/task", in_a_task), Route("/thread", in_a_thread)]
closes = Starlette(routes=routes, lifespan=closing)
careless = Starlette(routes=routes)
plain_routes = [Route("/ready", ready), Route("/task", by_the_middleware), Route("/thread", by_the_middleware)]
audited = Starlette(
    routes=plain_routes, middleware=[Middleware(otel_audit.AuditMiddleware, audit=audit, exclude=["/ready"])]
)
