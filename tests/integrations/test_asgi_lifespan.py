"""The lifespan of an application holds its logger, and the last one closes it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse

from otel_audit import AuditAction, AuditEvent, AuditMiddleware
from tests.integrations.serving import Served, a_logger, an_app, served


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def test_the_last_of_two_services_that_share_a_logger_closes_it(directory: Path) -> None:
    audit = a_logger(directory)
    event = AuditEvent(event_type="test", action=AuditAction(path="/"), outcome="success")

    with served(AuditMiddleware(an_app(), audit=audit)):
        with served(AuditMiddleware(an_app(), audit=audit)):
            first = audit.log(event)
        second = audit.log(event)
    third = audit.log(event)
    audit.close()

    assert first is not None
    assert second is not None
    assert third is not None
    assert first.stream_id == second.stream_id
    assert third.stream_id != second.stream_id  # the one before has its end


async def no_lifespan(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await greet_raw(scope, receive, send)


async def silent_lifespan(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await greet_raw(scope, receive, send)


async def greet_raw(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


@pytest.mark.parametrize("app", [no_lifespan, silent_lifespan])
def test_an_application_without_a_lifespan_has_its_logger_closed_too(directory: Path, app: Any) -> None:
    audit = a_logger(directory)

    with served(AuditMiddleware(app, audit=audit)) as server:
        assert httpx.get(server.url).text == "hello"
        before = audit.log(AuditEvent(event_type="test", outcome="success"))
    after = audit.log(AuditEvent(event_type="test", outcome="success"))
    audit.close()

    assert before is not None
    assert after is not None
    assert before.stream_id != after.stream_id


def test_a_startup_that_fails_closes_the_logger_and_stays_a_failure(directory: Path) -> None:
    audit = a_logger(directory)
    receipts = []

    @asynccontextmanager
    async def failing(app: Starlette) -> AsyncIterator[None]:
        receipts.append(audit.log(AuditEvent(event_type="test", outcome="success")))
        raise RuntimeError("no database")
        yield

    server = Served(AuditMiddleware(an_app(lifespan=failing), audit=audit))
    with pytest.raises(AssertionError, match="ended before it started"):
        server.start()
    server.stop()
    receipts.append(audit.log(AuditEvent(event_type="test", outcome="success")))
    audit.close()

    first, second = receipts
    assert first is not None
    assert second is not None
    assert first.stream_id != second.stream_id


async def sleepy(scope: Any, receive: Any, send: Any) -> None:
    """Returns when it has started, as simple applications do."""
    if scope["type"] == "http":
        await greet_raw(scope, receive, send)
    else:
        await receive()
        await send({"type": "lifespan.startup.complete"})


async def forgetful(scope: Any, receive: Any, send: Any) -> None:
    """Does not even say that it has started."""
    if scope["type"] == "http":
        await greet_raw(scope, receive, send)
    else:
        await receive()


@pytest.mark.parametrize("app", [sleepy, forgetful])
def test_an_application_whose_lifespan_ends_early_has_its_logger_until_the_server_ends(
    directory: Path, app: Any
) -> None:
    audit = a_logger(directory)

    with served(AuditMiddleware(app, audit=audit)) as server:
        receipts = [audit.log(AuditEvent(event_type="test"))]
        assert httpx.get(server.url).text == "hello"
        receipts.append(audit.log(AuditEvent(event_type="test")))
    receipts.append(audit.log(AuditEvent(event_type="test")))
    audit.close()

    first, second, after = (receipt.stream_id for receipt in receipts if receipt is not None)
    assert first == second != after


def test_an_application_whose_lifespan_breaks_is_served_and_recorded_on(directory: Path) -> None:
    broken = threading.Event()

    async def breaking(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await greet_raw(scope, receive, send)
            return
        await receive()
        broken.set()
        raise LookupError("no database")

    audit = a_logger(directory)
    before = audit.log(AuditEvent(event_type="test"))

    with served(AuditMiddleware(breaking, audit=audit), lifespan="auto") as server:
        assert broken.is_set()
        assert httpx.get(server.url).text == "hello"
        after = audit.log(AuditEvent(event_type="test"))
    audit.close()

    assert before is not None
    assert after is not None
    assert before.stream_id == after.stream_id
