"""A client session of SDK 2.x."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio
import httpx2
import mcp.types as types
from mcp import Client, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

__all__ = ["Session", "over_http", "over_sse", "over_stdio"]

CLIENT_INFO = types.Implementation(name="tests", version="7")


class Session:
    """What the tests do with a client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def call(self, name: str, arguments: dict[str, Any] | None = None, **options: Any) -> tuple[str, bool]:
        """The text of the answer, and whether it is an error."""
        answer = await self._client.call_tool(
            name, arguments, meta=options.get("meta"), progress_callback=options.get("progress")
        )
        return str(getattr(answer.content[0], "text", "")), bool(answer.is_error)

    async def read(self, uri: str) -> None:
        await self._client.read_resource(uri)

    async def prompt(self, name: str, arguments: dict[str, str]) -> None:
        await self._client.get_prompt(name, arguments)

    async def call_and_cancel(self, name: str) -> None:
        """The call is cancelled once the server has reported progress."""
        async with anyio.create_task_group() as group:

            async def on_progress(*_: Any) -> None:
                group.cancel_scope.cancel()

            await self._client.call_tool(name, {}, progress_callback=on_progress)


def _http(headers: Callable[[], Mapping[str, str]]) -> httpx2.AsyncClient:
    """A client of which each request has what the headers are then."""

    async def add(request: httpx2.Request) -> None:
        request.headers.update(headers())

    hooks: dict[str, list[Callable[..., Awaitable[None]]]] = {"request": [add]}
    return httpx2.AsyncClient(event_hooks=hooks, timeout=60, follow_redirects=True)


@contextlib.asynccontextmanager
async def over_http(url: str, headers: Callable[[], Mapping[str, str]], mode: str) -> AsyncIterator[Session]:
    async with (
        _http(headers) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode, client_info=CLIENT_INFO) as client,
    ):
        yield Session(client)


@contextlib.asynccontextmanager
async def over_sse(url: str, headers: Callable[[], Mapping[str, str]], mode: str) -> AsyncIterator[Session]:
    transport = sse_client(url, httpx_client_factory=lambda **_: _http(headers))
    async with Client(transport, mode=mode, client_info=CLIENT_INFO) as client:
        yield Session(client)


@contextlib.asynccontextmanager
async def over_stdio(command: list[str], environment: dict[str, str], mode: str) -> AsyncIterator[Session]:
    parameters = StdioServerParameters(command=command[0], args=command[1:], env=environment)
    async with Client(parameters, mode=mode, client_info=CLIENT_INFO) as client:
        yield Session(client)
