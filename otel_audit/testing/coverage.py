"""Call every route of an application, or every tool of an MCP server, and look for the event that each call leaves.

The calls are made in this process, over ASGI or over a pair of streams in memory, on an event loop of their own. Their
arguments are placeholders, so most handlers refuse them. That is enough: a refused call leaves an event too. Those that
take no arguments do run.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final, NamedTuple

from otel_audit.integrations.asgi.scope import ASGIApp, Message
from otel_audit.testing.events import AuditEvents

__all__ = ["AuditCoverage", "Endpoint"]

WEBSOCKET: Final = "WEBSOCKET"
_PARAMETER: Final = re.compile(r"\{(?P<name>[^}:]+)(?::(?P<kind>[^}]*))?\}")
_PLACEHOLDERS: Final = {"uuid": "00000000-0000-4000-8000-000000000000"}


class Endpoint(NamedTuple):
    """A route with one of its methods, as the application declares it: `DELETE /orders/{order}`."""

    method: str
    template: str

    def path(self, values: Mapping[str, object]) -> str:
        """Return the path with a value for each parameter; 1, or the zero UUID, for one that has none."""
        return _PARAMETER.sub(
            lambda found: str(values.get(found["name"], _PLACEHOLDERS.get(found["kind"] or "", "1"))), self.template
        )


class AuditCoverage:
    """Checks that each way into a service leaves an event among these. For one thread."""

    def __init__(self, events: AuditEvents) -> None:
        self._events = events

    def every_route(
        self,
        app: ASGIApp,
        *,
        except_for: Collection[str] = (),
        values: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """Send one request to every route of a FastAPI or Starlette application; return if each left an event.

        `except_for` names routes that need no event and are not called: `/health`, or `GET /health` for one method.
        `values` are those of path parameters, `headers` go with every request. A request without an answer after
        `timeout_s` seconds is cancelled, which leaves an event too.

        Raises:
            AssertionError: a route left no event. All of them are named.
            TypeError: the application has no list of its routes.
            ValueError: `except_for` names a route that does not exist.
        """
        __tracebackhide__ = True
        endpoints = _chosen(
            {f"{each.method} {each.template}": each for each in _endpoints(_routes_of(app))},
            except_for,
            lambda name: name.partition(" ")[2],
        )
        sent = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]

        async def called() -> list[str]:
            silent = []
            async with _lifespan(app) as state:
                for name, endpoint in endpoints.items():
                    scope = _scope(endpoint.method, endpoint.path(values or {}), sent, state)
                    self._events.forget()
                    with suppress(Exception):  # of a handler, which was given placeholders
                        await asyncio.wait_for(_request(app, scope), timeout_s)
                    if not len(self._events):
                        silent.append(name)
            return silent

        _judge(_run(called()), len(endpoints), "route", "put AuditMiddleware around all of the application")

    def every_tool(
        self,
        server: object,
        *,
        except_for: Collection[str] = (),
        arguments: Mapping[str, Mapping[str, Any]] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """Call every tool of an MCP server of the official SDK or of FastMCP; return if each left an event.

        `arguments` are those of a tool, by its name; the others are called without any. `except_for` names tools that
        need no event and are not called.

        Raises:
            AssertionError: a tool left no event. All of them are named.
            ValueError: `except_for` names a tool that does not exist.
        """
        __tracebackhide__ = True

        async def called() -> tuple[list[str], int]:
            silent = []
            async with _client(server) as client:
                tools = _chosen(await _tools_of(client), except_for, str)
                for name in tools:
                    self._events.forget()
                    with suppress(Exception):  # what a client makes of an answer that is an error
                        await asyncio.wait_for(client.call_tool(name, dict((arguments or {}).get(name, {}))), timeout_s)
                    if not len(self._events):
                        silent.append(name)
            return silent, len(tools)

        silent, count = _run(called())
        _judge(silent, count, "tool", "give the server to audit_server() before it is used")


def _judge(silent: Sequence[str], count: int, kind: str, remedy: str) -> None:
    __tracebackhide__ = True
    if silent:
        names = "\n".join(f"  {name}" for name in silent)
        raise AssertionError(
            f"expected an audit event of every {kind}, got none of {len(silent)} of {count}:\n{names}\n"
            f"{remedy}, or name in except_for what needs no event"
        )


def _chosen(offered: Mapping[str, Any], except_for: Collection[str], short: Callable[[str], str]) -> dict[str, Any]:
    known = {*offered, *map(short, offered)}
    if unknown := sorted(set(except_for) - known):
        raise ValueError(f"except_for: expected some of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return {name: each for name, each in offered.items() if not {name, short(name)} & set(except_for)}


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it in a thread: the test may have an event loop of its own, which is left as it is."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


def _routes_of(app: Any) -> Sequence[Any]:
    inner = app
    while not isinstance(getattr(inner, "routes", None), list) and hasattr(inner, "app"):
        inner = inner.app  # of a middleware
    routes = getattr(inner, "routes", None)
    if not isinstance(routes, list):
        raise TypeError(f"expected an application of FastAPI or Starlette, which has routes, got {type(inner)!r}")
    return routes


def _endpoints(routes: Sequence[Any], prefix: str = "") -> Iterator[Endpoint]:
    for each in routes:
        included = getattr(each, "effective_candidates", None)  # FastAPI keeps included routers whole
        if included is not None:
            yield from _endpoints(included(), prefix)
            continue
        route = getattr(each, "starlette_route", None) or each
        template = prefix + getattr(route, "path", "")
        methods = set(getattr(route, "methods", None) or ())
        if inner := getattr(route, "routes", None):
            yield from _endpoints(inner, template)
        elif "WebSocket" in type(route).__name__:
            yield Endpoint(WEBSOCKET, template)
        else:  # what is mounted without routes, such as static files, is asked for its root
            wanted = methods - {"HEAD"} if "GET" in methods else methods
            yield from (Endpoint(method, template or "/") for method in sorted(wanted or {"GET"}))


def _scope(method: str, path: str, headers: list[tuple[bytes, bytes]], state: dict[str, Any]) -> dict[str, Any]:
    """Return the scope of a request. Source: ASGI specification 3.0, "HTTP & WebSocket"."""
    is_socket = method == WEBSOCKET
    kind = {"type": "websocket", "subprotocols": []} if is_socket else {"type": "http", "method": method}
    return {
        **kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws" if is_socket else "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"testserver"), *headers],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        "state": dict(state),
    }


async def _request(app: ASGIApp, scope: dict[str, Any]) -> None:
    """Make one request with an empty body, and hang up when the answer begins: a stream may have no end."""
    begun = asyncio.Event()
    is_socket = scope["type"] == "websocket"
    messages: Iterator[Message] = iter(
        [{"type": "websocket.connect"}] if is_socket else [{"type": "http.request", "body": b"", "more_body": False}]
    )

    async def receive() -> Message:
        if (message := next(messages, None)) is not None:
            return message
        await begun.wait()
        return {"type": "websocket.disconnect", "code": 1000} if is_socket else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        begun.set()

    await app(scope, receive, send)


@asynccontextmanager
async def _lifespan(app: ASGIApp) -> AsyncIterator[dict[str, Any]]:
    """Start the application up and shut it down again. Give the state that it made, for the scopes of its requests."""
    said: asyncio.Queue[Message] = asyncio.Queue()
    answers: asyncio.Queue[Message] = asyncio.Queue()
    state: dict[str, Any] = {}

    async def run() -> None:
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}, said.get, answers.put)
        except Exception:  # it knows no lifespan, or has said already that it failed
            pass
        finally:
            await answers.put({"type": "ended"})

    task = asyncio.create_task(run())
    await said.put({"type": "lifespan.startup"})
    begun = await answers.get()
    if begun["type"] == "lifespan.startup.failed":
        raise AssertionError(f"expected the application to start, got {begun.get('message') or 'a failure'}")
    try:
        yield state
    finally:
        await said.put({"type": "lifespan.shutdown"})
        await task


def _client(server: Any) -> AbstractAsyncContextManager[Any]:
    """Return a client that is connected to the server in this process, by the SDK that the server is made with."""
    if _is_made_of(server, "fastmcp"):
        import fastmcp

        client: AbstractAsyncContextManager[Any] = fastmcp.Client(server)
        return client
    import mcp

    if hasattr(mcp, "Client"):  # SDK 2.x
        connected: AbstractAsyncContextManager[Any] = mcp.Client(server)
        return connected
    from mcp.shared.memory import create_connected_server_and_client_session

    session: AbstractAsyncContextManager[Any] = create_connected_server_and_client_session(server)
    return session


async def _tools_of(client: Any) -> dict[str, Any]:
    """Return all tools by name. A client of FastMCP gives them at once, one of the official SDK page by page."""
    page = await client.list_tools()
    if isinstance(page, list):
        return {tool.name: tool for tool in page}
    tools = {tool.name: tool for tool in page.tools}
    while cursor := page.next_cursor if hasattr(page, "next_cursor") else page.nextCursor:  # SDK 2.x, else 1.x
        page = await client.list_tools(cursor=cursor)
        tools |= {tool.name: tool for tool in page.tools}
    return tools


def _is_made_of(server: object, package: str) -> bool:
    return any(kind.__module__.partition(".")[0] == package for kind in type(server).__mro__)
