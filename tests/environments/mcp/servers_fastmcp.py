"""A server of the package `fastmcp`."""

from __future__ import annotations

from typing import Any

import fastmcp
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from offering import offer
from tools import TOKENS, Tools

__all__ = ["SERVERS", "asgi_app", "run_stdio"]


def fast(tools: Tools) -> fastmcp.FastMCP[Any]:
    server: fastmcp.FastMCP[Any] = fastmcp.FastMCP("fast", auth=StaticTokenVerifier(TOKENS))
    offer(server, tools, fastmcp.Context)
    return server


SERVERS = {"fastmcp": fast}


def asgi_app(server: fastmcp.FastMCP[Any], transport: str) -> Any:
    return server.http_app(transport="sse" if transport == "sse" else "http", stateless_http=transport == "stateless")


async def run_stdio(server: fastmcp.FastMCP[Any]) -> None:
    await server.run_stdio_async(show_banner=False)
