"""The route of a request is the template that was met, whatever values the client chose for its parameters."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from otel_audit import AuditMiddleware
from tests.chain_check import application_events
from tests.integrations.serving import Served, a_logger, events_of


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def test_the_route_is_a_template_through_routers_mounts_and_static_files(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "a.txt").write_text("a")
    router = APIRouter(prefix="/orders")

    @router.get("/{order}")
    def order(order: int) -> int:
        return order

    inner = FastAPI()

    @inner.get("/users/{user}")
    def user(user: str, tenant: str | None = None) -> str:
        return user

    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.mount("/tenants/{tenant}", inner)
    app.mount("/files", StaticFiles(directory=tmp_path / "static"))
    app.add_middleware(AuditMiddleware, audit=a_logger(directory))

    def call(server: Served) -> None:
        for path in ("/v1/orders/17", "/tenants/acme/users/ann", "/files/a.txt", "/nowhere", "/v1/orders/x"):
            httpx.get(server.url + path)

    events = events_of(app, directory, call)

    assert [(e["action"]["path"], e["status_code"], e.get("attributes", {}).get("http.route")) for e in events] == [
        ("/v1/orders/17", 200, "/v1/orders/{order}"),
        ("/tenants/acme/users/ann", 200, "/tenants/{tenant}/users/{user}"),
        ("/files/a.txt", 200, "/files"),
        ("/nowhere", 404, None),
        ("/v1/orders/x", 422, "/v1/orders/{order}"),
    ]


async def answer(request: Request) -> Response:
    return PlainTextResponse("")


USERS = Starlette(routes=[Route("/users/{user}", answer), Mount("/{id}", routes=[Route("/{id}", answer)])])
MOUNTED = Starlette(
    routes=[
        Route("/items/{item}", answer),
        Mount("/api", USERS),
        Mount("/tenants/{tenant}", USERS),
        Mount("/numbers/{number:int}", USERS),
        Mount("/wrapped/{tenant}", GZipMiddleware(USERS)),
        Host("files.example", Starlette(routes=[Mount("/of/{owner}", USERS)])),
    ]
)


def routes_of(
    app: Any, directory: Path, path: str, root_path: str = "", host: bytes = b"shop.example", kind: str = "http"
) -> object:
    """The route of the one request for a path, or of the one connection to it."""
    scope = {
        "type": kind,
        "method": "GET",
        "path": root_path + path,
        "root_path": root_path,
        "query_string": b"",
        "headers": [(b"host", host)],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request" if kind == "http" else "websocket.connect"}

    async def send(message: Any) -> None:
        return

    audit = a_logger(directory)
    asyncio.run(AuditMiddleware(app, audit=audit)(scope, receive, send))
    audit.close()
    (event,) = application_events(directory)
    return event.get("attributes", {}).get("http.route")


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/items/5", "/items/{item}"),
        ("/api/users/ann", "/api/users/{user}"),
        ("/api/users/api", "/api/users/{user}"),
        ("/tenants/acme/users/tenants", "/tenants/{tenant}/users/{user}"),
        ("/tenants/tenants/users/ann", "/tenants/{tenant}/users/{user}"),
        ("/tenants/acme/7/8", "/tenants/{tenant}/{id}/{id}"),
        ("/numbers/007/users/ann", "/numbers/{number:int}/users/{user}"),
        ("/wrapped/wrapped/users/ann", "/wrapped/{tenant}/users/{user}"),
        ("/tenants/acme/no/such/path", "/tenants/{tenant}/{id}"),
    ],
)
def test_no_value_that_a_client_chooses_changes_the_route(
    directory: Path, root_path: str, path: str, route: str
) -> None:
    assert routes_of(MOUNTED, directory, path, root_path) == route


def test_the_route_is_found_through_a_host(directory: Path) -> None:
    assert routes_of(MOUNTED, directory, "/of/of/users/of", host=b"files.example") == "/of/{owner}/users/{user}"


def test_the_root_path_of_an_application_is_not_part_of_its_routes(directory: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # deprecated in the newest FastAPI
        app = FastAPI(root_path="/api/v1")

    @app.get("/items/{item}")
    def item(item: int) -> int:
        return item

    assert routes_of(app, directory, "/items/5") == "/items/{item}"


async def hang_up(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


def an_app_of_routers() -> FastAPI:
    """Routers in routers, with every kind of route that FastAPI takes from them."""
    mounted = FastAPI()
    users = APIRouter(prefix="/users")
    users.get("/{user}")(lambda user: user)
    users.websocket("/{user}/ws")(hang_up)
    mounted.include_router(users)
    router = APIRouter()
    router.websocket("/{order}/ws")(hang_up)
    router.add_route("/{order}/plain", answer)
    router.mount("/{order}/files", Starlette(routes=[Route("/{name}", answer), WebSocketRoute("/{name}/ws", hang_up)]))
    router.mount("/{order}/app", mounted)
    outer = APIRouter(prefix="/shops/{shop}")
    outer.include_router(router, prefix="/orders")
    app = FastAPI()
    app.include_router(outer, prefix="/v1")
    return app


@pytest.mark.parametrize(
    ("kind", "path", "route"),
    [
        ("websocket", "/7/ws", "/{order}/ws"),
        ("websocket", "/7/files/a/ws", "/{order}/files/{name}/ws"),
        ("websocket", "/7/app/users/ann/ws", "/{order}/app/users/{user}/ws"),
        ("http", "/7/plain", "/{order}/plain"),
        ("http", "/7/files/a", "/{order}/files/{name}"),
        ("http", "/7/app/users/ann", "/{order}/app/users/{user}"),
    ],
)
def test_the_route_has_the_prefixes_of_included_routers(directory: Path, kind: str, path: str, route: str) -> None:
    prefix = "/v1/shops/{shop}/orders"

    assert routes_of(an_app_of_routers(), directory, f"/v1/shops/b/orders{path}", kind=kind) == prefix + route
