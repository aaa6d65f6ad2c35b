"""A WebSocket connection is one event, from its handshake to its close."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketException
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from otel_audit import AuditMiddleware
from otel_audit.settings import OnLoss
from tests.chain_check import application_events
from tests.integrations.serving import Served, a_logger, audited, events_of, fill, served, the_event

Talk = Callable[[ClientConnection], Awaitable[object]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    websocket.state.user = "ann"
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def closing(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close(int(websocket.path_params["code"]))


async def refusing(websocket: WebSocket) -> None:
    await websocket.close(1008)


async def failing(websocket: WebSocket) -> None:
    await websocket.accept()
    raise LookupError


async def failing_early(websocket: WebSocket) -> None:
    raise LookupError


def an_app() -> Starlette:
    endpoints = {
        "/rooms/{room}": echo,
        "/close/{code}": closing,
        "/no": refusing,
        "/fail": failing,
        "/early": failing_early,
    }
    return Starlette(routes=[WebSocketRoute(path, endpoint) for path, endpoint in endpoints.items()])


def talk(path: str, talk: Talk) -> Callable[[Served], None]:
    async def talked(server: Served) -> None:
        async with connect(f"ws://127.0.0.1:{server.address[1]}{path}", proxy=None) as socket:
            await talk(socket)

    return lambda server: asyncio.run(talked(server))


async def until_closed(socket: ClientConnection) -> None:
    with pytest.raises(ConnectionClosed):
        await socket.recv()


async def say_hello(socket: ClientConnection) -> None:
    await socket.send("hello")
    assert await socket.recv() == "hello"


def test_a_connection_is_one_event_with_who_what_how_long_and_how_it_ended(directory: Path) -> None:
    async def stay(socket: ClientConnection) -> None:
        await say_hello(socket)
        await asyncio.sleep(0.2)
        await say_hello(socket)

    event = the_event(audited(an_app(), directory), directory, talk("/rooms/5?token=hunter2", stay))

    assert event["event_type"] == "websocket.session"
    assert event["principal"]["username"] == "ann"
    assert event["source"]["transport"] == "websocket"
    assert event["action"] == {"mcp_tool": "", "path": "/rooms/5", "method": "GET"}
    assert event["attributes"] == {"http.route": "/rooms/{room}", "websocket.close_code": 1000}
    assert (event["outcome"], event["status_code"]) == ("success", 101)
    assert event["duration_ms"] >= 200


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (1000, "success"),
        (1001, "success"),
        (1008, "denied"),
        (3000, "denied"),
        (3003, "denied"),
        (1002, "failure"),
        (1011, "error"),
        (1013, "error"),
        (4000, "unknown"),
    ],
)
def test_the_outcome_follows_from_the_code_that_the_application_closes_with(
    directory: Path, code: int, outcome: str
) -> None:
    event = the_event(audited(an_app(), directory), directory, talk(f"/close/{code}", until_closed))

    assert (event["outcome"], event["attributes"]["websocket.close_code"]) == (outcome, code)


def test_a_client_that_is_cut_off_is_no_success(directory: Path) -> None:
    async def vanish(socket: ClientConnection) -> None:
        await say_hello(socket)
        socket.transport.abort()

    event = the_event(audited(an_app(), directory), directory, talk("/rooms/5", vanish))

    # The server says the same of a client that closes without a code.
    assert (event["outcome"], event["attributes"]["websocket.close_code"]) == ("unknown", 1005)


def test_a_client_that_leaves_with_a_code_of_its_own_is_a_cancelled_connection(directory: Path) -> None:
    async def leave(socket: ClientConnection) -> None:
        await say_hello(socket)
        await socket.close(4001)

    event = the_event(audited(an_app(), directory), directory, talk("/rooms/5", leave))

    assert (event["outcome"], event["attributes"]["websocket.close_code"]) == ("cancelled", 4001)


@pytest.mark.parametrize(
    ("path", "status", "outcome"), [("/no", 403, "denied"), ("/early", 500, "error"), ("/nowhere", 403, "denied")]
)
def test_a_handshake_that_is_not_taken_is_an_event_with_the_status_that_the_client_gets(
    directory: Path, path: str, status: int, outcome: str
) -> None:
    def call(server: Served) -> None:
        with pytest.raises(InvalidStatus) as refused:
            talk(path, say_hello)(server)
        assert refused.value.response.status_code == status

    event = the_event(audited(an_app(), directory), directory, call)

    assert (event["outcome"], event["status_code"]) == (outcome, status)


def test_an_answer_in_the_place_of_a_handshake_counts_by_its_status(directory: Path) -> None:
    app = FastAPI()

    @app.websocket("/login")
    async def login(websocket: WebSocket) -> None:
        raise HTTPException(401)

    def call(server: Served) -> None:
        with pytest.raises(InvalidStatus) as refused:
            talk("/login", say_hello)(server)
        assert refused.value.response.status_code == 401

    event = the_event(audited(app, directory), directory, call)

    assert (event["outcome"], event["status_code"], event["attributes"]) == ("denied", 401, {"http.route": "/login"})


def test_an_exception_on_an_open_connection_is_an_error(directory: Path) -> None:
    event = the_event(audited(an_app(), directory), directory, talk("/fail", until_closed))

    assert (event["outcome"], event["status_code"], event["error_type"]) == ("error", 101, "LookupError")


def test_a_policy_violation_that_fastapi_raises_is_denied(directory: Path) -> None:
    app = FastAPI()

    @app.websocket("/rooms/{room}")
    async def room(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        raise WebSocketException(1008)

    event = the_event(audited(app, directory), directory, talk("/rooms/5", until_closed))

    assert event["outcome"] == "denied"
    assert event["attributes"]["http.route"] == "/rooms/{room}"


def test_a_server_that_ends_leaves_an_event_of_each_open_connection(directory: Path) -> None:
    app = audited(an_app(), directory)

    async def stay_connected(server: Served) -> None:
        uri = f"ws://127.0.0.1:{server.address[1]}/rooms/5"
        async with connect(uri, proxy=None) as one, connect(uri, proxy=None) as other:
            await say_hello(one)
            await say_hello(other)
            await asyncio.to_thread(server.stop)

    server = Served(app)
    server.start()
    asyncio.run(stay_connected(server))

    assert [event["status_code"] for event in application_events(directory)] == [101, 101]


def test_where_the_rule_is_closed_a_connection_begins_in_the_trail(directory: Path) -> None:
    app = AuditMiddleware(an_app(), audit=a_logger(directory, on_loss=OnLoss.CLOSED))

    begin, end = events_of(app, directory, talk("/rooms/5", say_hello))

    assert (begin["outcome"], end["outcome"]) == ("unknown", "success")
    assert end["parent_id"] == begin["event_id"]


@pytest.mark.processes
def test_where_the_rule_is_closed_a_connection_that_cannot_be_recorded_is_refused(small_disk: Path) -> None:
    audit = a_logger(small_disk / "audit", on_loss=OnLoss.CLOSED)

    with served(AuditMiddleware(an_app(), audit=audit)) as server:
        fill(audit, small_disk)
        with pytest.raises(InvalidStatus) as refused:
            talk("/rooms/5", say_hello)(server)

    assert refused.value.response.status_code == 503


def test_the_answer_to_the_handshake_names_the_event_if_it_is_asked_to(directory: Path) -> None:
    ids: list[Any] = []

    async def look(socket: ClientConnection) -> None:
        assert socket.response is not None
        ids.append(socket.response.headers["x-audit-id"])

    event = the_event(audited(an_app(), directory, audit_id_header=True), directory, talk("/rooms/5", look))

    assert ids == [event["event_id"]]
