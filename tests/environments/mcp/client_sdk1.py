"""A client session of SDK 1.x."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio
import httpx
import mcp.types as types
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

__all__ = ["Session", "over_http", "over_sse", "over_stdio"]


class Session:
    """What the tests do with a client."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def call(self, name: str, arguments: dict[str, Any] | None = None, **options: Any) -> tuple[str, bool]:
        """The text of the answer, and whether it is an error."""
        answer = await self._session.call_tool(
            name, arguments, meta=options.get("meta"), progress_callback=options.get("progress")
        )
        return str(getattr(answer.content[0], "text", "")), bool(answer.isError)

    async def read(self, uri: str) -> None:
        await self._session.read_resource(uri)  # type: ignore[arg-type]

    async def prompt(self, name: str, arguments: dict[str, str]) -> None:
        await self._session.get_prompt(name, arguments)

    async def call_and_cancel(self, name: str) -> None:
        """The call is cancelled once the server has reported progress."""
        begun = anyio.Event()

        async def on_progress(*_: Any) -> None:
            begun.set()

        async def call() -> None:
            with contextlib.suppress(Exception):  # the answer says that it was cancelled
                await self._session.call_tool(name, {}, progress_callback=on_progress)

        async with anyio.create_task_group() as group:
            request_id = self._session._request_id
            group.start_soon(call)
            await begun.wait()
            params = types.CancelledNotificationParams(requestId=request_id)
            await self._session.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))


def _http(headers: Callable[[], Mapping[str, str]]) -> httpx.AsyncClient:
    """A client of which each request has what the headers are then."""

    async def add(request: httpx.Request) -> None:
        request.headers.update(headers())

    hooks: dict[str, list[Callable[..., Awaitable[None]]]] = {"request": [add]}
    return httpx.AsyncClient(event_hooks=hooks, timeout=60, follow_redirects=True)


@contextlib.asynccontextmanager
async def over_http(url: str, headers: Callable[[], Mapping[str, str]], mode: str) -> AsyncIterator[Session]:
    async with (
        _http(headers) as http,
        streamable_http_client(url, http_client=http) as (read, write, _),
        ClientSession(read, write, client_info=types.Implementation(name="tests", version="7")) as session,
    ):
        await session.initialize()
        yield Session(session)


@contextlib.asynccontextmanager
async def over_sse(url: str, headers: Callable[[], Mapping[str, str]], mode: str) -> AsyncIterator[Session]:
    async with (
        sse_client(url, httpx_client_factory=lambda **_: _http(headers)) as (read, write),
        ClientSession(read, write, client_info=types.Implementation(name="tests", version="7")) as session,
    ):
        await session.initialize()
        yield Session(session)


@contextlib.asynccontextmanager
async def over_stdio(command: list[str], environment: dict[str, str], mode: str) -> AsyncIterator[Session]:
    parameters = StdioServerParameters(command=command[0], args=command[1:], env=environment)
    async with (
        stdio_client(parameters) as (read, write),
        ClientSession(read, write, client_info=types.Implementation(name="tests", version="7")) as session,
    ):
        await session.initialize()
        yield Session(session)
