"""The low-level server of SDK 1.x: handlers that come later, and handlers that others wrap."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mcp.types as types
from mcp.server.lowlevel import Server
from mcp.shared.memory import create_connected_server_and_client_session

import otel_audit
from otel_audit.integrations.mcp import audit_server, current_event
from tests.recording import recorder


def offer_echo(server: Server[Any, Any]) -> None:
    @server.list_tools()
    async def list_tools() -> list[types.Tool]:
        return [types.Tool(name="echo", inputSchema={"type": "object"})]

    @server.call_tool()
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        event = current_event()
        return [types.TextContent(type="text", text="none" if event is None else event.event_type)]


def call_echo(server: Server[Any, Any]) -> str:
    async def work() -> str:
        async with asyncio.timeout(60), create_connected_server_and_client_session(server) as session:
            answer = await session.call_tool("echo", {})
            assert isinstance(answer.content[0], types.TextContent)
            return answer.content[0].text

    return asyncio.run(work())


def test_handlers_that_are_added_after_the_installation_are_recorded(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("later")
    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        offer_echo(server)

        assert call_echo(server) == "mcp.tools.call"
        assert audit.stats().emitted == 1


def test_a_handler_that_others_look_up_and_wrap_is_recorded_once(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("wrapped")
    offer_echo(server)
    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        inner = server.request_handlers[types.CallToolRequest]

        async def outer(request: types.CallToolRequest) -> types.ServerResult:
            return await inner(request)

        server.request_handlers[types.CallToolRequest] = outer

        assert call_echo(server) == "mcp.tools.call"
        assert audit.stats().emitted == 1


def test_a_second_installation_changes_nothing(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("twice")
    offer_echo(server)
    with recorder(tmp_path) as audit:
        assert audit_server(audit_server(server, audit), audit) is server

        call_echo(server)
        assert audit.stats().emitted == 1


def test_other_requests_are_no_events(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("other")
    offer_echo(server)

    async def work() -> None:
        async with asyncio.timeout(60), create_connected_server_and_client_session(server) as session:
            await session.list_tools()
            await session.send_ping()

    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        asyncio.run(work())

        assert audit.stats().emitted == 0


def test_who_called_may_come_from_elsewhere_when_no_token_says_it(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("named")
    offer_echo(server)
    with recorder(tmp_path) as audit:
        audit_server(server, audit, principal=lambda request: otel_audit.AuditPrincipal(username=f"local {request}"))
        call_echo(server)

    assert '"username":"local None"' in "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))


def test_a_call_that_goes_on_as_a_task_has_no_success_yet(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("tasks")
    now = datetime.now(UTC)

    @server.call_tool(validate_input=False)
    async def call_tool(name: str, arguments: dict[str, Any]) -> types.CreateTaskResult:
        task = types.Task(taskId="1", status="working", createdAt=now, lastUpdatedAt=now, ttl=60_000)
        return types.CreateTaskResult(task=task)

    async def work() -> None:
        request = types.CallToolRequest(params=types.CallToolRequestParams(name="train", arguments={}))
        async with asyncio.timeout(60), create_connected_server_and_client_session(server) as session:
            await session.send_request(types.ClientRequest(request), types.CreateTaskResult)

    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        asyncio.run(work())

    assert '"outcome":"task_created"' in "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
