"""`audit_coverage` calls every tool of a server, whatever it is made with, and names those that leave no event."""

from __future__ import annotations

from typing import Any

import mcp.types as types
import pytest
from mcp.server.lowlevel import Server
from sdk import IS_SDK1, SERVERS

from otel_audit import AuditLogger
from otel_audit.integrations.mcp import audit_server
from otel_audit.testing.coverage import AuditCoverage
from otel_audit.testing.events import AuditEvents


def a_server(kind: str, calls: list[str]) -> Any:
    def now() -> str:
        """Needs no arguments."""
        calls.append("now")
        return "noon"

    def add(a: int, b: int) -> str:
        """Is refused without arguments."""
        calls.append(f"add {a} {b}")
        return str(a + b)

    if kind == "fastmcp":
        from fastmcp import FastMCP

        server: Any = FastMCP("fast")
    elif IS_SDK1:
        from mcp.server.fastmcp import FastMCP as Sdk1FastMCP

        server = Sdk1FastMCP("one")
    else:
        from mcp.server.mcpserver import MCPServer

        server = MCPServer("two")
    server.tool()(now)
    server.tool()(add)
    return server


def paged(calls: list[str]) -> Any:
    """A low-level server that lists its tools one at a time."""
    names = ["one", "two", "three"]

    def page(cursor: str | None) -> dict[str, Any]:
        at = int(cursor or 0)
        schema = {"inputSchema": {"type": "object"}} if IS_SDK1 else {"input_schema": {"type": "object"}}
        following = {"nextCursor" if IS_SDK1 else "next_cursor": str(at + 1) if at + 1 < len(names) else None}
        return {"tools": [types.Tool(name=names[at], **schema)], **following}

    if IS_SDK1:
        server: Any = Server("paged")

        @server.list_tools()
        async def list_tools(request: types.ListToolsRequest) -> types.ListToolsResult:
            return types.ListToolsResult(**page(request.params.cursor if request.params else None))

        @server.call_tool()
        async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
            calls.append(name)
            return [types.TextContent(type="text", text=name)]

        return server

    async def listed(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(**page(params.cursor if params else None))

    async def called(ctx: Any, params: Any) -> types.CallToolResult:
        calls.append(params.name)
        return types.CallToolResult(content=[types.TextContent(text=params.name)])

    return Server("paged", on_list_tools=listed, on_call_tool=called)


HIGH_LEVEL = [kind for kind in SERVERS if "lowlevel" not in kind]


@pytest.mark.parametrize("kind", HIGH_LEVEL)
def test_every_tool_is_called_and_leaves_an_event(
    kind: str, audit_trail: AuditLogger, audit_coverage: AuditCoverage, audit_events: AuditEvents
) -> None:
    calls: list[str] = []

    audit_coverage.every_tool(audit_server(a_server(kind, calls), audit_trail), arguments={"add": {"a": 2, "b": 3}})

    assert calls == ["now", "add 2 3"]


@pytest.mark.parametrize("kind", HIGH_LEVEL)
def test_a_tool_that_refuses_its_arguments_leaves_an_event(
    kind: str, audit_trail: AuditLogger, audit_coverage: AuditCoverage
) -> None:
    calls: list[str] = []

    audit_coverage.every_tool(audit_server(a_server(kind, calls), audit_trail))

    assert calls == ["now"]


@pytest.mark.parametrize("kind", HIGH_LEVEL)
def test_the_tools_of_a_server_that_is_not_audited_are_named(kind: str, audit_coverage: AuditCoverage) -> None:
    with pytest.raises(AssertionError, match="of every tool, got none of 1 of 1:\n  now\n"):
        audit_coverage.every_tool(a_server(kind, []), except_for=["add"])


def test_tools_on_later_pages_are_called_too(audit_trail: AuditLogger, audit_coverage: AuditCoverage) -> None:
    calls: list[str] = []

    audit_coverage.every_tool(audit_server(paged(calls), audit_trail))

    assert calls == ["one", "two", "three"]
