"""A handler fills in the event of its own request, wherever it runs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from starlette.middleware.base import BaseHTTPMiddleware
from websockets.sync.client import connect

from otel_audit import AuditMiddleware, AuditPrincipal, AuditResource
from otel_audit.integrations.asgi import current_event, set_principal
from otel_audit.integrations.parent import within
from otel_audit.settings import OnLoss
from tests.chain_check import application_events
from tests.integrations.serving import Served, a_logger, events_of, get, pass_on

WAYS = [("os", OnLoss.OPEN), ("fsync", OnLoss.OPEN), ("os", OnLoss.CLOSED)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def fill(name: str) -> None:
    """What only the application knows."""
    event = current_event()
    assert event is not None
    event.resource = AuditResource(type="order", name=name)
    event.reason = "owner"
    event.attributes = {**(event.attributes or {}), "tenant": "blue"}


def by_dependency(name: str) -> str:
    fill(name)
    return name


async def by_async_dependency(name: str) -> str:
    fill(name)
    return name


def an_app() -> FastAPI:
    app = FastAPI()

    @app.get("/thread/{name}")
    def in_thread(name: str) -> None:
        fill(name)

    @app.get("/task/{name}")
    async def in_task(name: str) -> None:
        await asyncio.create_task(asyncio.to_thread(fill, name))

    @app.get("/dependency/{name}")
    async def dependent(name: Annotated[str, Depends(by_dependency)]) -> None:
        return

    @app.get("/async-dependency/{name}")
    def dependent_on_async(name: Annotated[str, Depends(by_async_dependency)]) -> None:
        return

    @app.get("/denied/{name}")
    def denied(name: str) -> None:
        fill(name)
        raise HTTPException(403)

    @app.get("/boom/{name}")
    def boom(name: str) -> None:
        fill(name)
        raise RuntimeError

    return app


PATHS = {"thread": 200, "task": 200, "dependency": 200, "async-dependency": 200, "denied": 403, "boom": 500}


@pytest.mark.parametrize(("durability", "on_loss"), WAYS, ids=str)
@pytest.mark.parametrize("has_base", [False, True], ids=["alone", "below BaseHTTPMiddleware"])
def test_what_a_handler_fills_in_is_in_the_event_of_its_request(
    directory: Path, has_base: bool, durability: str, on_loss: OnLoss
) -> None:
    app = an_app()
    if has_base:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    audit = a_logger(directory, settings={"durability": durability}, on_loss=on_loss)
    app.add_middleware(AuditMiddleware, audit=audit, principal=lambda scope: "ann")

    def call(server: Served) -> None:
        for name in PATHS:
            httpx.get(f"{server.url}/{name}/of-{name}")

    events = [each for each in events_of(app, directory, call) if each["outcome"] != "unknown"]

    outcomes = {200: "success", 403: "denied", 500: "error"}
    assert [(e["resource"]["name"], e["status_code"], e["outcome"]) for e in events] == [
        (f"of-{name}", status, outcomes[status]) for name, status in PATHS.items()
    ]
    assert {(each["reason"], each["principal"]["username"]) for each in events} == {("owner", "ann")}
    for name, event in zip(PATHS, events, strict=True):
        assert event["attributes"] == {"http.route": f"/{name}/{{name}}", "tenant": "blue"}
        assert event["detail"] == f"GET /{name}/of-{name} -> {PATHS[name]}"
        assert event["duration_ms"] > 0
        assert event.get("error_type") == ("RuntimeError" if name == "boom" else None)


@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_an_outcome_a_detail_and_a_principal_that_are_filled_in_are_kept(directory: Path, durability: str) -> None:
    app = FastAPI()

    @app.get("/")
    def answer() -> None:
        event = current_event()
        assert event is not None
        event.outcome, event.detail, event.principal = "denied", "hidden", AuditPrincipal(username="eve")

    @app.get("/told")
    def told() -> None:
        answer()
        set_principal("ann")

    audit = a_logger(directory, settings={"durability": durability})
    app.add_middleware(AuditMiddleware, audit=audit, principal=lambda scope: "of the session")

    events = events_of(app, directory, lambda server: (get("/")(server), get("/told")(server)))

    assert [(e["outcome"], e["detail"], e["principal"]["username"]) for e in events] == [
        ("denied", "hidden", "eve"),
        ("denied", "hidden", "ann"),
    ]


def test_a_connection_has_an_event_to_fill_in_too(directory: Path) -> None:
    app = FastAPI()

    @app.websocket("/talk/{name}")
    async def talk(socket: WebSocket, name: str) -> None:
        await socket.accept()
        fill(name)
        await socket.close()

    app.add_middleware(AuditMiddleware, audit=a_logger(directory))

    def call(server: Served) -> None:
        with connect(f"ws://127.0.0.1:{server.address[1]}/talk/ann") as socket:
            list(socket)

    (event,) = events_of(app, directory, call)

    assert (event["event_type"], event["resource"]["name"], event["outcome"]) == ("websocket.session", "ann", "success")
    assert event["attributes"] == {"websocket.close_code": 1000, "http.route": "/talk/{name}", "tenant": "blue"}


def events_of_calls(app: Any, directory: Path, count: int = 1) -> list[dict[str, Any]]:
    """What requests at once leave, without a server."""
    audit = a_logger(directory)
    audited = AuditMiddleware(app, audit=audit)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()  # nobody asks for the body
        raise AssertionError

    async def send(message: Any) -> None:
        return

    async def calls() -> None:
        scopes = [{"type": "http", "method": "GET", "path": f"/{number}", "headers": []} for number in range(count)]
        await asyncio.gather(*(audited(scope, receive, send) for scope in scopes))

    asyncio.run(calls())
    audit.close()
    return application_events(directory)


def answering(work: Callable[[Any], object]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0)
        work(scope)
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    return app


def test_requests_at_once_have_events_of_their_own(directory: Path) -> None:
    events = events_of_calls(answering(lambda scope: fill(scope["path"])), directory, 20)

    assert {event["resource"]["name"] for event in events} == {f"/{number}" for number in range(20)}
    assert all(event["resource"]["name"] == event["action"]["path"] for event in events)


def test_the_event_says_what_is_known_already_and_is_always_the_same(directory: Path) -> None:
    seen: list[Any] = []

    def look(scope: Any) -> None:
        seen.extend((current_event(), current_event()))

    (event,) = events_of_calls(answering(look), directory)

    assert seen[0] is seen[1]
    assert (seen[0].event_id, seen[0].request_id, seen[0].action.path) == (event["event_id"], event["request_id"], "/0")


def test_threads_that_ask_at_once_get_the_same_event(directory: Path) -> None:
    asked: list[Any] = []

    def ask_at_once(scope: Any) -> None:
        barrier = threading.Barrier(10)

        def ask() -> None:
            barrier.wait()
            asked.append(current_event())

        threads = [threading.Thread(target=contextvars.copy_context().run, args=(ask,)) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    events = events_of_calls(answering(ask_at_once), directory, 20)

    assert len(asked) == 200
    assert len({id(event) for event in asked}) == len(events) == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [("attributes", [1]), ("attributes", {"a": object()}), ("principal", 7), ("resource", None), ("outcome", object())],
)
def test_nonsense_that_is_filled_in_costs_no_event(directory: Path, name: str, value: Any) -> None:
    (event,) = events_of_calls(answering(lambda scope: setattr(current_event(), name, value)), directory)

    assert (event["status_code"], event["action"]["path"]) == (200, "/0")


def test_there_is_no_event_outside_of_a_request_and_the_innermost_one_inside() -> None:
    outer, inner = object(), object()
    seen: list[Any] = [current_event()]

    with within("outer", lambda: outer):  # type: ignore[arg-type,return-value]  # any object does
        with within("inner", lambda: inner):  # type: ignore[arg-type,return-value]  # likewise
            seen.append(current_event())
        seen.append(current_event())
    seen.append(current_event())

    assert seen == [None, inner, outer, None]
