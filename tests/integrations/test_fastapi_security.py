"""The user that a dependency returns is the principal, if it stands on a scheme of `fastapi.security`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Security, WebSocket, routing
from fastapi.security import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    HTTPAuthorizationCredentials,
    HTTPBasic,
    HTTPBasicCredentials,
    HTTPBearer,
    HTTPDigest,
    OAuth2PasswordBearer,
    OpenIdConnect,
    SecurityScopes,
)
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from websockets.sync.client import connect

from otel_audit import AuditLogger, AuditMiddleware, AuditPrincipal
from otel_audit.integrations.asgi import set_principal
from otel_audit.integrations.asgi.exchange import HttpExchange
from otel_audit.integrations.asgi.fastapi_user import watch_dependencies
from otel_audit.integrations.client_address import TrustedProxies
from otel_audit.notices import Notices
from otel_audit.settings import ForwardedHeader
from tests.chain_check import application_events
from tests.integrations.serving import a_logger, served

# Opaque, so that nothing but this module's own care keeps it out of the journal.
SECRET = "qzv7-kx0w-token-of-no-known-form"
BEARER = {"authorization": f"Bearer {SECRET}"}
DIGEST = {"authorization": f'Digest realm="orders", username="ann", nonce="n", uri="/", response="{SECRET}"'}

bearer = OAuth2PasswordBearer(tokenUrl="token", auto_error=False)
http_bearer = HTTPBearer(auto_error=False)
basic = HTTPBasic(auto_error=False)
digest = HTTPDigest()
key = APIKeyHeader(name="x-key", auto_error=False)
key_of_query = APIKeyQuery(name="key", auto_error=False)
session = APIKeyCookie(name="session", auto_error=False)

Token = Annotated[str, Depends(bearer)]
Credentials = Annotated[HTTPAuthorizationCredentials, Depends(http_bearer)]
NamedByPassword = Annotated[HTTPBasicCredentials, Depends(basic)]


class User(BaseModel):
    """As in FastAPI's tutorial."""

    username: str
    email: str | None = None
    hashed_password: str = SECRET


ANN = User(username="ann", email="ann@example.org")


def get_current_user(token: Token) -> User:
    return ANN


async def get_current_active_user(user: Annotated[User, Depends(get_current_user)]) -> User:
    if user.username == "nobody":
        raise HTTPException(400, "Inactive user")
    return user


def refuse(user: Annotated[User, Depends(get_current_user)]) -> None:
    raise HTTPException(403, "not for you")


def refuse_beside() -> None:
    raise HTTPException(409, "not now")


async def claims_of(token: Token) -> dict[str, Any]:
    return {"iss": "https://idp.example", "sub": "00u-mallory", "preferred_username": "alice", "scope": "read"}


def account_of(claims: Annotated[dict[str, Any], Depends(claims_of)]) -> SimpleNamespace:
    return SimpleNamespace(id=17, username="the account of alice")


async def with_a_session(token: Token) -> AsyncIterator[User]:
    yield ANN


class Verifier:
    def __call__(self, scopes: SecurityScopes, token: Token) -> User:
        return ANN

    def verify(self, token: Token) -> User:
        return ANN


class VerifyingBearer(HTTPBearer):
    """A scheme that verifies, as many a package has one."""

    async def __call__(self, request: HTTPConnection) -> Any:
        return {"sub": "0815", "name": "ann"}


class StrippingBearer(HTTPBearer):
    async def __call__(self, request: HTTPConnection) -> Any:
        return request.headers["authorization"].removeprefix("Bearer ")


@dataclass
class Session:
    id: str
    username: str


def pair_of(user: Annotated[User, Depends(get_current_user)], token: Token) -> tuple[User, str]:
    return user, token


DEPENDENCIES: dict[str, tuple[Callable[..., Any], AuditPrincipal]] = {
    "tutorial": (get_current_active_user, AuditPrincipal(username="ann")),
    "thread": (get_current_user, AuditPrincipal(username="ann")),
    "yield": (with_a_session, AuditPrincipal(username="ann")),
    "callable": (Verifier(), AuditPrincipal(username="ann")),
    "method": (Verifier().verify, AuditPrincipal(username="ann")),
    "nearest": (
        account_of,
        AuditPrincipal(username="alice", id="00u-mallory", issuer="https://idp.example", roles=["read"]),
    ),
    "scheme": (VerifyingBearer(), AuditPrincipal(username="ann", id="0815")),
    "pair": (pair_of, AuditPrincipal(username="ann")),
}


def id_of(token: Token) -> UUID:
    return UUID(int=17)


def same(credentials: Credentials) -> Any:
    return credentials


def text_of(credentials: Credentials) -> str:
    return credentials.credentials


def part_of(token: Token) -> str:
    return token[5:]


def around(token: Token) -> str:
    return f"Bearer {token}"


def holder_of(token: Token) -> Any:
    return SimpleNamespace(token=token, id=token, username=f"user of {token}")


def claims_with_secret(token: Token) -> dict[str, Any]:
    return {"id": token, "sub": "", "name": "ann", "access_token": token}


def reissued(token: Token) -> str:
    return "y" * 300


def of_key(given: Annotated[str, Depends(key)]) -> str:
    return given


def of_query(key: Annotated[str, Depends(key_of_query)]) -> Any:
    return {"key": key}


def of_cookie(session: Annotated[str, Depends(session)]) -> Any:
    return Session(id=session, username="ann")


def client_of(given: Annotated[str, Depends(key)]) -> str:
    return "stock-sync"


def flag_of(credentials: NamedByPassword) -> bool:
    return True


def name_of(credentials: NamedByPassword) -> str:
    return credentials.username


def fail(credentials: NamedByPassword) -> None:
    raise HTTPException(401)


def stripped(token: Annotated[str, Depends(StrippingBearer())]) -> str:
    return token


def oidc(header: Annotated[str, Depends(OpenIdConnect(openIdConnectUrl="/x"))]) -> str:
    return header.removeprefix("Bearer ")


class Unreadable:
    """As a proxy that stands for nothing yet."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(SECRET)


def unreadable(token: Token) -> Any:
    return Unreadable()


class Odd:
    @property
    def username(self) -> str:
        raise RuntimeError(SECRET)


def odd(token: Token) -> Any:
    return Odd()


def unrelated() -> User:
    return User(username="a default")


NOBODY = AuditPrincipal()
# An older release of FastAPI, which goes with an older OpenTelemetry, gives its schemes requests only.
SOCKETS_HAVE_SCHEMES = "HTTPConnection" in str(OAuth2PasswordBearer.__call__.__annotations__["request"])
BY_HEADER: dict[str, tuple[Callable[..., Any], AuditPrincipal]] = {
    **DEPENDENCIES,
    "id": (id_of, AuditPrincipal(username=str(UUID(int=17)), id=str(UUID(int=17)))),
    "same": (same, NOBODY),
    "text": (text_of, NOBODY),
    "part": (part_of, NOBODY),
    "around": (around, NOBODY),
    "reissued": (reissued, NOBODY),
    "holder": (holder_of, NOBODY),
    "claims": (claims_with_secret, AuditPrincipal(username="ann")),
    "key": (of_key, NOBODY),
    "query": (of_query, NOBODY),
    "cookie": (of_cookie, AuditPrincipal(username="ann")),
    "client": (client_of, AuditPrincipal(username="stock-sync")),
    "stripped": (stripped, NOBODY),
    "oidc": (oidc, NOBODY),
    "unreadable": (unreadable, NOBODY),
    "odd": (odd, NOBODY),
    "unrelated": (unrelated, NOBODY),
    "bare-scheme": (bearer, NOBODY),
    "bare-key": (key, NOBODY),
}
BY_PASSWORD: dict[str, tuple[Callable[..., Any], AuditPrincipal]] = {
    "flag": (flag_of, AuditPrincipal(username="ann", auth_type="basic")),
    "name": (name_of, AuditPrincipal(username="ann")),
    "basic": (basic, AuditPrincipal(username="ann", auth_type="basic")),
    "refused": (fail, NOBODY),
}


def an_app(audit: AuditLogger) -> FastAPI:
    """One route for each dependency, twice: as a parameter and among those of the route."""
    app = FastAPI()
    app.add_middleware(AuditMiddleware, audit=audit)

    def add(name: str, dependency: Callable[..., Any]) -> None:
        secured = Security(dependency, scopes=["read"])

        @app.get(f"/parameter/{name}")
        def parameter(value: Any = secured) -> None: ...

        @app.get(f"/route/{name}", dependencies=[Depends(dependency)])
        def route() -> None: ...

    for name, (dependency, _) in (BY_HEADER | BY_PASSWORD).items():
        add(name, dependency)

    @app.get("/refused-later", dependencies=[Depends(get_current_user), Depends(refuse)])
    def refused_later() -> None: ...

    @app.get("/refused-beside", dependencies=[Depends(get_current_user), Depends(refuse_beside)])
    def refused_beside() -> None: ...

    @app.get("/invalid/{number}")
    def invalid(number: int, user: Annotated[User, Depends(get_current_user)]) -> None: ...

    @app.get("/digest", dependencies=[Depends(digest)])
    def by_digest() -> None: ...

    @app.get("/endpoint-refuses")
    def endpoint_refuses(given: NamedByPassword) -> None:
        raise HTTPException(401)

    @app.get("/told")
    def told(user: Annotated[User, Depends(get_current_user)]) -> None:
        set_principal("bea")

    @app.get("/by-name/{name}")
    def by_name(name: str, user: Annotated[User, Depends(named_by_path)]) -> None: ...

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, user: Annotated[User, Depends(get_current_user)]) -> None:
        await websocket.accept()
        await websocket.close()

    app.mount("/under-test", an_app_under_test())
    return app


def an_app_under_test() -> FastAPI:
    """One whose users come from a test, and not from a token."""
    app = FastAPI()

    @app.get("/user", dependencies=[Depends(get_current_active_user)])
    def user() -> None: ...

    @app.get("/stripped", dependencies=[Depends(stripped)])
    def by_stripped() -> None: ...

    app.dependency_overrides[get_current_user] = lambda: User(username="a user of tests")
    return app


async def named_by_path(request: Request, token: Token) -> User:
    await asyncio.sleep(0.001)
    return User(username=request.path_params["name"])


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The events of all requests, by the path."""
    directory = tmp_path_factory.mktemp("audit")
    with served(an_app(a_logger(directory))) as server, httpx.Client(base_url=server.url) as client:
        for way in ("parameter", "route"):
            for name in BY_HEADER:
                headers = {**BEARER, "x-key": SECRET, "cookie": f"session={SECRET}"}
                client.get(f"/{way}/{name}", headers=headers, params={"key": SECRET})
            for name in BY_PASSWORD:
                client.get(f"/{way}/{name}", auth=("ann", SECRET))
        for path in (
            "/refused-later",
            "/refused-beside",
            "/told",
            "/under-test/user",
            "/under-test/stripped",
            "/invalid/x",
        ):
            client.get(path, headers=BEARER)
        client.get("/digest", headers=DIGEST)
        client.get("/endpoint-refuses", auth=("ann", SECRET))
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda name: client.get(f"/by-name/{name}", headers=BEARER), map(str, range(64))))
        if SOCKETS_HAVE_SCHEMES:
            with connect(f"ws://127.0.0.1:{server.address[1]}/socket", additional_headers=BEARER):
                pass
    found = {event["action"]["path"]: event for event in application_events(directory)}
    assert SECRET not in "".join(path.read_text() for path in directory.rglob("*.jsonl"))
    return found


def who(event: dict[str, Any]) -> AuditPrincipal:
    return AuditPrincipal.model_validate(event["principal"])


@pytest.mark.parametrize("name", BY_HEADER | BY_PASSWORD)
def test_the_user_is_what_the_dependency_nearest_to_the_scheme_returns_and_never_a_secret(
    events: dict[str, dict[str, Any]], name: str
) -> None:
    _, expected = (BY_HEADER | BY_PASSWORD)[name]

    assert who(events[f"/parameter/{name}"]) == expected
    assert who(events[f"/route/{name}"]) == expected
    assert events[f"/route/{name}"]["status_code"] == (401 if name == "refused" else 200)


@pytest.mark.parametrize(("path", "status"), [("/refused-later", 403), ("/refused-beside", 409), ("/invalid/x", 422)])
def test_a_request_that_fails_behind_its_user_is_that_users(
    events: dict[str, dict[str, Any]], path: str, status: int
) -> None:
    assert (events[path]["status_code"], who(events[path])) == (status, AuditPrincipal(username="ann"))


def test_a_user_name_of_digest_is_a_name(events: dict[str, dict[str, Any]]) -> None:
    assert who(events["/digest"]) == AuditPrincipal(username="ann", auth_type="digest")


def test_a_user_name_that_the_endpoint_itself_refuses_is_nobodys(events: dict[str, dict[str, Any]]) -> None:
    assert (events["/endpoint-refuses"]["status_code"], who(events["/endpoint-refuses"])) == (401, NOBODY)


def test_what_the_application_says_itself_counts_before(events: dict[str, dict[str, Any]]) -> None:
    assert who(events["/told"]) == AuditPrincipal(username="bea")


def test_a_dependency_that_is_overridden_gives_the_user_all_the_same(events: dict[str, dict[str, Any]]) -> None:
    assert who(events["/under-test/user"]) == AuditPrincipal(username="a user of tests")
    assert who(events["/under-test/stripped"]) == NOBODY


if SOCKETS_HAVE_SCHEMES:

    def test_a_connection_has_the_user_of_its_dependencies(events: dict[str, dict[str, Any]]) -> None:
        assert who(events["/socket"]) == AuditPrincipal(username="ann")


def test_requests_at_the_same_time_keep_their_users_apart(events: dict[str, dict[str, Any]]) -> None:
    for name in map(str, range(64)):
        assert who(events[f"/by-name/{name}"]) == AuditPrincipal(username=name)


def test_an_application_that_nobody_records_is_solved_as_ever() -> None:
    app = FastAPI()

    @app.get("/")
    def read(user: Annotated[User, Depends(get_current_user)]) -> str:
        return user.username

    with served(app, lifespan="off") as server:
        assert httpx.get(server.url, headers=BEARER).json() == "ann"


@pytest.mark.parametrize("place", [None, lambda *, request, dependant: None, print], ids=["gone", "changed", "odd"])
def test_a_fastapi_without_the_place_is_left_alone_and_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: Any
) -> None:
    if place is None:
        monkeypatch.delattr(routing, "solve_dependencies")
    else:
        monkeypatch.setattr(routing, "solve_dependencies", place)

    for _ in range(3):
        watch_dependencies(notices := Notices())
        watch_dependencies(notices)

    assert getattr(routing, "solve_dependencies", None) is place
    assert capfd.readouterr().err.count("users are not found in the dependencies of this release of FastAPI") == 3


def test_dependencies_of_another_shape_are_solved_as_ever_and_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As a later release of FastAPI may have them."""

    async def solve(*, request: Any, dependant: Any, dependency_cache: Any = None) -> Any:
        return "solved"

    monkeypatch.setattr(routing, "solve_dependencies", solve)
    watch_dependencies(Notices())
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
    HttpExchange(scope, TrustedProxies((), ForwardedHeader.X_FORWARDED_FOR))

    solved = vars(routing)["solve_dependencies"](request=SimpleNamespace(scope=scope), dependant=object())

    assert asyncio.run(solved) == "solved"
    assert "users are not found in the dependencies of this release of FastAPI" in capfd.readouterr().err


def test_it_is_put_in_place_once(tmp_path: Path) -> None:
    audit = a_logger(tmp_path)
    for _ in range(2):
        AuditMiddleware(FastAPI(), audit=audit)
        first = vars(routing)["solve_dependencies"]
    AuditMiddleware(FastAPI(), audit=audit)

    assert vars(routing)["solve_dependencies"] is first
    audit.close()
