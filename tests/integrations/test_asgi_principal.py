"""Who asks is in the event, wherever an application keeps its user."""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from otel_audit import AuditEvent, AuditMiddleware, AuditPrincipal
from otel_audit.integrations.asgi import set_principal
from otel_audit.integrations.asgi.scope import Message, Receive, Scope, Send
from tests.chain_check import application_events
from tests.integrations.serving import Served, a_logger, an_app, audited, events_of, get, pass_on, the_event
from tests.recording import recorder

SECRET = "a-secret-of-no-known-form"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def imports_of(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return our modules that import statements of this thread name meanwhile."""
    me, real, named = threading.get_ident(), builtins.__import__, list[str]()

    def noting(name: str, *arguments: Any) -> Any:
        if threading.get_ident() == me and name.startswith("otel_audit"):
            named.append(name)
        return real(name, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", noting)
        work()
    return named


def test_neither_a_request_nor_an_event_pays_for_an_import_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"user": {"sub": "ann", "roles": ["reader"]}}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def taken(message: Message) -> None:
        """Send to a client that takes everything."""

    async def nothing() -> Message:
        return {"type": "http.request"}

    with recorder(tmp_path) as audit:
        served = AuditMiddleware(app, audit=audit)

        def work() -> None:
            asyncio.run(served({"type": "http", "method": "GET", "path": "/", "headers": []}, nothing, taken))
            audit.log(AuditEvent(event_type="own", principal=AuditPrincipal(username="ann")))

        work()  # of the first event, much is imported

        assert imports_of(work, monkeypatch) == []

    assert [event["principal"]["username"] for event in application_events(tmp_path)] == ["ann"] * 4


class ByHeader(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        name = conn.headers.get("x-user")
        return None if name is None else (AuthCredentials(["authenticated", "orders:read"]), SimpleUser(name))


def test_the_user_of_starlettes_authentication_is_the_principal_although_it_is_set_further_inside(
    directory: Path,
) -> None:
    inner = an_app(middleware=[Middleware(AuthenticationMiddleware, backend=ByHeader())])

    event = the_event(audited(inner, directory), directory, get(headers={"x-user": "ann"}))

    assert event["principal"] == {"username": "ann", "roles": ["orders:read"], "auth_type": ""}


def test_a_service_whose_requests_have_credentials_and_no_user_is_told_how_to_name_them(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("otel_audit.integrations.principals._UNNAMED_S", 0.0)

    def call(server: Served) -> None:
        get()(server)
        assert capfd.readouterr().err == ""
        get(headers={"cookie": "session=17"})(server)

    events_of(audited(an_app(), directory), directory, call)

    assert "no event says whose they are" in capfd.readouterr().err


def test_a_user_who_is_not_authenticated_is_nobody(directory: Path) -> None:
    inner = an_app(middleware=[Middleware(AuthenticationMiddleware, backend=ByHeader())])

    event = the_event(audited(inner, directory), directory, get(headers={"authorization": "Bearer made-up"}))

    assert event["principal"] == {"username": "", "roles": [], "auth_type": ""}


@pytest.mark.parametrize(
    "value",
    [
        "ann",
        AuditPrincipal(username="ann"),
        {"sub": "ann", "exp": 1},
        SimpleUser("ann"),
        type("User", (), {"username": "ann", "password": "hunter2"})(),
    ],
    ids=["name", "principal", "claims", "user", "object"],
)
@pytest.mark.parametrize("key", ["user", "principal", "current_user"])
def test_what_the_application_keeps_in_the_state_of_the_request_is_the_principal(
    directory: Path, key: str, value: object
) -> None:
    async def with_state(request: Request) -> Response:
        setattr(request.state, key, value)
        return PlainTextResponse("")

    event = the_event(audited(an_app(Route("/state", with_state)), directory), directory, get("/state"))

    assert event["principal"]["username"] == "ann"
    assert "hunter2" not in json.dumps(event)


def test_a_context_variable_that_is_set_further_inside_is_the_principal(directory: Path) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    async def with_user(request: Request) -> Response:
        user.set("ann")
        return PlainTextResponse("")

    app = audited(an_app(Route("/me", with_user)), directory, principal=user)

    events = events_of(app, directory, lambda server: (get("/me")(server), get("/")(server)))

    assert [event["principal"]["username"] for event in events] == ["ann", ""]


def test_the_principal_is_seen_through_other_middleware_and_from_a_thread(directory: Path) -> None:
    app = FastAPI()
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)  # runs the application in another task
    app.add_middleware(AuditMiddleware, audit=a_logger(directory))

    def user() -> str:
        set_principal(AuditPrincipal(username="ann", roles=["reader"]))  # in a thread
        return "ann"

    @app.get("/items/{item}")
    def items(item: int, user: str = Depends(user)) -> str:
        return user

    event = the_event(app, directory, get("/items/5"))

    assert event["principal"] == {"username": "ann", "roles": ["reader"], "auth_type": ""}
    assert event["attributes"] == {"http.route": "/items/{item}"}


def test_a_principal_that_cannot_be_found_out_costs_neither_the_request_nor_its_event(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(scope: Any) -> object:
        raise LookupError(f"no session for {SECRET}")

    answers: list[httpx.Response] = []
    app = audited(an_app(), directory, principal=broken)
    event = the_event(app, directory, lambda server: answers.append(httpx.get(server.url)))

    assert answers[0].status_code == 200
    assert event["principal"]["username"] == ""
    said = capfd.readouterr().err
    assert "who makes a request could not be found out: LookupError raised at" in said
    assert f"{Path(__file__).name}:" in said
    assert SECRET not in said


def test_a_principal_that_cannot_be_read_where_it_is_told_costs_neither_the_request_nor_its_event(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Detached:
        @property
        def username(self) -> str:
            raise LookupError("no session")

    async def tell(request: Request) -> Response:
        set_principal(Detached())
        return PlainTextResponse("told")

    event = the_event(audited(an_app(Route("/tell", tell)), directory), directory, get("/tell"))

    assert (event["status_code"], event["principal"]["username"]) == (200, "")
    assert "who makes a request could not be found out" in capfd.readouterr().err
