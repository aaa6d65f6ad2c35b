"""Who was let in and who was not is recorded with the reason, by dependencies that are resolved as any other."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.authentication import UnauthenticatedUser
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from otel_audit import AuditLogger, AuditMiddleware, AuditPrincipal, AuditResource
from otel_audit.integrations.fastapi import Ruling, audited_authentication, audited_permission
from otel_audit.settings import OnLoss
from tests.chain_check import application_events
from tests.integrations.serving import Served, a_logger, events_of, fill, served

if TYPE_CHECKING:
    from collections.abc import Hashable  # as a linter moves it there

USERS = {"t-ann": AuditPrincipal(username="ann", roles=["writer"]), "t-bob": AuditPrincipal(username="bob")}
ANN = {"authorization": "Bearer t-ann"}
BOB = {"authorization": "Bearer t-bob"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def audit(directory: Path) -> AuditLogger:
    return a_logger(directory)


def by_token(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> AuditPrincipal:
    if token.credentials not in USERS:
        raise HTTPException(401, "unknown token")
    return USERS[token.credentials]


def an_app(audit: AuditLogger, **middleware: Any) -> FastAPI:
    """Orders, which writers may delete."""
    app = FastAPI()
    user = Depends(audited_authentication(audit, by_token, auth_type="bearer"))

    def may_write(order: int, user: AuditPrincipal = user) -> Ruling:
        return Ruling("writer" in user.roles, f"roles {user.roles}", "orders.write")

    def the_order(request: Request) -> AuditResource:
        return AuditResource(type="order", name=request.path_params["order"])

    permission = audited_permission(audit, may_write, resource=the_order, actions=["DELETE"])

    @app.delete("/orders/{order}", dependencies=[Depends(permission)])
    def delete(order: int) -> int:
        return order

    app.add_middleware(AuditMiddleware, audit=audit, **middleware)
    return app


def delete(headers: dict[str, str], status: int) -> Callable[[Served], None]:
    def call(server: Served) -> None:
        assert httpx.delete(f"{server.url}/orders/17", headers=headers).status_code == status

    return call


def test_a_request_that_is_let_in_leaves_who_it_was_why_and_what_became_of_it(
    audit: AuditLogger, directory: Path
) -> None:
    app = an_app(audit, trusted_proxies=["127.0.0.1"])

    authn, authz, request = events_of(app, directory, delete(ANN | {"x-request-id": "r-17"}, 200))

    assert (authn["event_type"], authn["outcome"]) == ("authn.success", "success")
    assert authn["principal"] == {"username": "ann", "roles": ["writer"], "auth_type": "bearer"}
    assert (authz["event_type"], authz["outcome"]) == ("authz.decision", "allow")
    assert (authz["reason"], authz["policy_id"]) == ("roles ['writer']", "orders.write")
    assert authz["resource"] == {"type": "order", "name": "17", "actions": ["DELETE"]}
    assert (request["event_type"], request["outcome"]) == ("http.request", "success")
    assert request["principal"] == authz["principal"] == authn["principal"]
    assert {event["request_id"] for event in (authn, authz, request)} == {"r-17"}
    assert authn["parent_id"] == authz["parent_id"] == request["event_id"]
    assert {event["action"]["path"] for event in (authn, authz, request)} == {"/orders/17"}
    assert "t-ann" not in json.dumps([authn, authz, request])


def test_a_request_that_is_not_permitted_leaves_who_was_denied_and_why(audit: AuditLogger, directory: Path) -> None:
    authn, authz, request = events_of(an_app(audit), directory, delete(BOB, 403))

    assert authn["outcome"] == "success"
    assert (authz["outcome"], authz["reason"], authz["policy_id"]) == ("deny", "roles []", "orders.write")
    assert authz["principal"]["username"] == "bob"
    assert (request["outcome"], request["principal"]["username"]) == ("denied", "bob")


def test_a_wrong_token_is_a_failed_authentication_of_nobody(audit: AuditLogger, directory: Path) -> None:
    authn, request = events_of(an_app(audit), directory, delete({"authorization": "Bearer t-eve"}, 401))

    assert (authn["event_type"], authn["outcome"], authn["reason"]) == ("authn.failure", "failure", "unknown token")
    assert authn["principal"] == {"username": "", "roles": [], "auth_type": "bearer"}
    assert authn["source"]["ip"] == "127.0.0.1"
    assert (request["outcome"], request["principal"]["username"]) == ("denied", "")
    assert "t-eve" not in json.dumps([authn, request])


def a_check(audit: AuditLogger, check: Callable[..., Any], directory: Path, status: int) -> list[dict[str, Any]]:
    """What a permission check leaves, asked in an application without the middleware."""
    app = FastAPI()

    permission = audited_permission(audit, check, policy_id="p-1")

    @app.get("/")
    def root(value: object = Depends(permission)) -> str:
        return repr(value)

    def call(server: Served) -> None:
        assert httpx.get(server.url, headers={"x-role": "writer"}).status_code == status

    events = events_of(app, directory, call)
    audit.close()
    return events


async def allows_async(x_role: Annotated[str, Header()]) -> bool:
    return x_role == "writer"


class Allows:
    async def __call__(self, x_role: Annotated[str, Header()]) -> str:
        return x_role


def denies() -> bool:
    return False


def finds_nothing() -> None:
    return None


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as applications have them, which does not know of coroutines."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@wrapped
async def denies_wrapped(x_role: Annotated[str, Header()]) -> bool:
    return x_role == "nobody"


async def denies_async() -> bool:
    return False


def denies_by_a_coroutine() -> Any:
    return denies_async()


def asks_the_request(request: Request) -> bool:
    return request.headers["x-role"] == "writer"


def says_what_it_returns(x_role: Annotated[str, Header()]) -> Hashable:
    return x_role


async def takes_too_long() -> bool:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(30)
    return True


def raises_permission_error() -> bool:
    raise PermissionError("the file /etc/shadow")


async def raises_forbidden() -> bool:
    raise HTTPException(403, "not yours")


def breaks() -> bool:
    raise LookupError("hunter2")


class NeitherTrueNorFalse:
    def __bool__(self) -> bool:
        raise LookupError("hunter2")


def says_nothing_clear() -> NeitherTrueNorFalse:
    return NeitherTrueNorFalse()


@pytest.mark.parametrize(
    ("check", "status", "outcome", "reason", "error_type"),
    [
        (allows_async, 200, "allow", None, None),
        (Allows(), 200, "allow", None, None),
        (asks_the_request, 200, "allow", None, None),
        (says_what_it_returns, 200, "allow", None, None),
        (denies, 403, "deny", None, None),
        (denies_wrapped, 403, "deny", None, None),
        (denies_by_a_coroutine, 403, "deny", None, None),
        (finds_nothing, 403, "deny", None, None),
        (raises_permission_error, 403, "deny", None, "PermissionError"),
        (raises_forbidden, 403, "deny", "not yours", "HTTPException"),
        (breaks, 500, "error", None, "LookupError"),
        (says_nothing_clear, 500, "error", None, "LookupError"),
        (takes_too_long, 500, "cancelled", None, "TimeoutError"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_way_a_check_decides_is_one_decision(
    audit: AuditLogger,
    directory: Path,
    check: Callable[..., Any],
    status: int,
    outcome: str,
    reason: str | None,
    error_type: str | None,
) -> None:
    (event,) = a_check(audit, check, directory, status)

    assert event["outcome"] == outcome
    assert event["policy_id"] == "p-1"
    assert (event.get("reason"), event.get("error_type")) == (reason, error_type)
    assert event["source"]["ip"] == "127.0.0.1"
    assert "hunter2" not in json.dumps(event)
    assert "shadow" not in json.dumps(event)


def test_a_parameter_that_is_missing_is_found_by_fastapi_before_anything_is_decided(
    audit: AuditLogger, directory: Path
) -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(audited_permission(audit, allows_async))])
    def root() -> str:
        return ""

    with served(app) as server:
        assert httpx.get(server.url).status_code == 422
    audit.close()

    assert audit.stats().emitted == 0


def yields() -> Iterator[bool]:
    yield True


class Yields:
    def __call__(self) -> Iterator[bool]:
        yield True


@pytest.mark.parametrize("check", [yields, wrapped(yields), Yields()], ids=["plain", "wrapped", "object"])
def test_a_check_that_yields_is_refused_at_once(audit: AuditLogger, check: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="expected a function or coroutine function"):
        audited_permission(audit, check)
    audit.close()


def test_the_parameters_of_a_check_stand_in_the_description_of_the_service(audit: AuditLogger) -> None:
    parameters = an_app(audit).openapi()["paths"]["/orders/{order}"]["delete"]

    assert [parameter["name"] for parameter in parameters["parameters"]] == ["order"]
    assert parameters["security"] == [{"HTTPBearer": []}]


@pytest.mark.parametrize("user", [None, False, UnauthenticatedUser()], ids=["None", "False", "Unauthenticated"])
def test_an_authentication_that_finds_nobody_is_a_failure(audit: AuditLogger, directory: Path, user: object) -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(audited_authentication(audit, lambda: user))])
    def root() -> str:
        return ""

    app.add_middleware(AuditMiddleware, audit=audit)
    authn, request = events_of(app, directory, lambda server: httpx.get(server.url))

    assert (authn["event_type"], request["outcome"], request["status_code"]) == ("authn.failure", "denied", 401)


@pytest.mark.processes
def test_nobody_is_let_in_on_a_decision_that_cannot_be_recorded_where_the_rule_is_closed(small_disk: Path) -> None:
    audit = a_logger(small_disk / "audit", on_loss=OnLoss.CLOSED)
    reached: list[str] = []
    app = FastAPI()

    @app.get("/", dependencies=[Depends(audited_permission(audit, lambda: True))])
    def root() -> str:
        reached.append("root")
        return ""

    with served(app) as server:
        fill(audit, small_disk)
        answer = httpx.get(server.url)
    audit.close()

    assert (answer.status_code, reached) == (503, [])


@pytest.mark.parametrize("token", ["t-ann", "t-eve"])
def test_a_websocket_is_guarded_by_the_same_dependencies(audit: AuditLogger, directory: Path, token: str) -> None:
    app = FastAPI()

    user = Depends(audited_authentication(audit, by_query))

    def may_join(user: AuditPrincipal = user) -> bool:
        return "writer" in user.roles

    @app.websocket("/rooms/{room}", dependencies=[Depends(audited_permission(audit, may_join))])
    async def join(websocket: WebSocket, room: int) -> None:
        await websocket.accept()
        await websocket.send_text("joined")

    app.add_middleware(AuditMiddleware, audit=audit)

    def call(server: Served) -> None:
        with connect(f"ws://127.0.0.1:{server.address[1]}/rooms/5?token={token}", proxy=None) as socket:
            assert socket.recv() == "joined"

    if token == "t-ann":
        authn, authz, session = events_of(app, directory, call)
        assert (authn["event_type"], authz["outcome"]) == ("authn.success", "allow")
        assert session["principal"]["username"] == authz["principal"]["username"] == "ann"
    else:
        with pytest.raises(InvalidStatus), served(app) as server:
            call(server)
        authn, session = application_events(directory)
        assert (authn["event_type"], session["status_code"]) == ("authn.failure", 401)
    assert authn["source"]["transport"] == "websocket"
    assert authn["action"] == session["action"]
    assert authn["parent_id"] == session["event_id"]


def by_query(token: str) -> AuditPrincipal | None:
    return USERS.get(token)


def test_a_check_that_is_cancelled_leaves_that_it_was(audit: AuditLogger, directory: Path) -> None:
    asked = asyncio.Event()

    async def never_ends() -> bool:
        asked.set()
        await asyncio.sleep(60)
        return True

    async def cancelled() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            asking = asyncio.ensure_future(client.get("/"))
            await asked.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    app = FastAPI()

    @app.get("/", dependencies=[Depends(audited_permission(audit, never_ends))])
    def root() -> str:
        return ""

    asyncio.run(cancelled())
    audit.close()

    (event,) = application_events(directory)
    assert (event["event_type"], event["outcome"]) == ("authz.decision", "cancelled")


def test_whom_an_application_keeps_in_the_state_of_a_request_stays_there(audit: AuditLogger, directory: Path) -> None:
    app = FastAPI()

    def who(request: Request) -> str:
        request.state.principal = SimpleNamespace(name="eve", tenant="acme")
        return "ann"

    authentication = Depends(audited_authentication(audit, who))

    def check(user: str = authentication) -> bool:
        return user == "ann"

    @app.get("/", dependencies=[Depends(audited_permission(audit, check))])
    def root(request: Request) -> str:
        return str(request.state.principal.tenant)

    answers: list[str] = []
    events = events_of(app, directory, lambda server: answers.append(httpx.get(server.url).text))
    audit.close()

    assert answers == ['"acme"']
    assert [event["principal"]["username"] for event in events] == ["ann", "ann"]


def test_no_query_of_a_client_stands_in_the_way_of_a_decision(audit: AuditLogger, directory: Path) -> None:
    scope = {
        "type": "http",
        "method": "DELETE",
        "path": "/orders/17",
        "query_string": b"q=\xff",
        "headers": [(b"host", b"["), (b"authorization", b"Bearer t-bob")],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    statuses: list[int | None] = []
    asyncio.run(an_app(audit)(scope, receive, send))
    audit.close()

    assert statuses[0] == 403
    assert [event["action"]["path"] for event in application_events(directory)] == ["/orders/17"] * 3


def test_a_resource_that_cannot_be_told_lets_nobody_in_and_is_recorded(audit: AuditLogger, directory: Path) -> None:
    def the_order(request: Request) -> AuditResource:
        raise LookupError("no database")

    app = FastAPI()

    @app.get("/", dependencies=[Depends(audited_permission(audit, lambda: True, resource=the_order))])
    def root() -> str:
        return ""

    def call(server: Served) -> None:
        assert httpx.get(server.url).status_code == 500

    (event,) = events_of(app, directory, call)
    audit.close()

    assert (event["event_type"], event["outcome"], event["error_type"]) == ("authz.decision", "error", "LookupError")


def test_an_annotation_that_cannot_be_read_is_told_at_once(audit: AuditLogger) -> None:
    class Local: ...

    def check(local: Local) -> bool:
        return local is not None

    with pytest.raises(NameError, match="Local"):
        audited_permission(audit, check)
    audit.close()
