"""Servers of the official SDK 2.x: the low-level one, and `MCPServer`."""

from __future__ import annotations

from typing import Any

import mcp.types as types
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.stdio import stdio_server
from offering import offer
from pydantic import AnyHttpUrl
from tools import NAMES, RESOURCE_URI, TOKENS, Tools

__all__ = ["SERVERS", "asgi_app", "run_stdio"]

AUTH = AuthSettings(issuer_url=AnyHttpUrl("http://127.0.0.1:9"), resource_server_url=None)


class Verifier(TokenVerifier):
    async def verify_token(self, token: str) -> AccessToken | None:
        known = TOKENS.get(token)
        if known is None:
            return None
        claims = {key: known[key] for key in ("iss",) if key in known}
        return AccessToken(
            token=token,
            client_id=known["client_id"],
            scopes=known["scopes"],
            subject=known.get("sub"),
            claims=claims,
        )


def low_level(tools: Tools) -> Server[Any]:
    async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        async def report(progress: float) -> None:
            await ctx.session.report_progress(progress)

        arguments = params.arguments or {}
        if params.name in ("wait", "report"):
            arguments = {"report": report}
        if not hasattr(tools, params.name):
            return types.CallToolResult(content=[types.TextContent(text="Unknown tool")], is_error=True)
        try:
            text = await getattr(tools, params.name)(**arguments)
        except (ValueError, RuntimeError):
            return types.CallToolResult(content=[types.TextContent(text="failed")], is_error=True)
        return types.CallToolResult(content=[types.TextContent(text=text)])

    async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name=name, input_schema={"type": "object"}) for name in NAMES])

    async def read_resource(ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        if str(params.uri) != RESOURCE_URI:
            raise ValueError("unknown resource")
        return types.ReadResourceResult(contents=[types.TextResourceContents(uri=params.uri, text="rows")])

    async def get_prompt(ctx: Any, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        if params.name != "explain":
            raise ValueError("unknown prompt")
        text = types.TextContent(text="explain it")
        return types.GetPromptResult(messages=[types.PromptMessage(role="user", content=text)])

    return Server(
        "low-level",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_read_resource=read_resource,
        on_get_prompt=get_prompt,
    )


def high_level(tools: Tools) -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("high-level", token_verifier=Verifier(), auth=AUTH)
    offer(server, tools, Context)
    return server


SERVERS = {"sdk2-lowlevel": low_level, "sdk2-mcpserver": high_level}


def asgi_app(server: Any, transport: str) -> Any:
    if transport == "sse":
        return server.sse_app()
    auth = {} if isinstance(server, MCPServer) else {"auth": AUTH, "token_verifier": Verifier()}
    return server.streamable_http_app(stateless_http=transport == "stateless", **auth)


async def run_stdio(server: Any) -> None:
    if isinstance(server, MCPServer):
        await server.run_stdio_async()
        return
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
