"""The low-level server of SDK 1.x: handlers that come later, and handlers that others wrap."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from pipes import conversation
from typing import Any

import mcp.types as types
import pytest
from conftest import Service
from mcp import McpError
from mcp.server.lowlevel import Server
from mcp.shared.memory import create_client_server_memory_streams, create_connected_server_and_client_session
from mcp.shared.message import SessionMessage
from sdk import SERVERS

import otel_audit
from otel_audit.integrations.auto import MCPAuditor
from otel_audit.integrations.mcp import audit_server, current_event
from otel_audit.integrations.mcp.call import EVENT_TYPES
from otel_audit.integrations.mcp.fastmcp import audited_check
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


def test_handlers_of_the_sdks_own_tasks_that_are_added_after_the_installation_are_found(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("tasks")
    tasks = server.experimental  # which keeps the mapping of handlers that it finds
    offer_echo(server)

    async def work() -> types.ListTasksResult:
        async with asyncio.timeout(60), create_connected_server_and_client_session(server) as session:
            request = types.ClientRequest(types.ListTasksRequest())
            return await session.send_request(request, types.ListTasksResult)

    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        tasks.enable_tasks()

        assert asyncio.run(work()).tasks == []
        assert call_echo(server) == "mcp.tools.call"


MALFORMED: list[tuple[str, Any]] = [
    ("tools/call", {"name": 5, "arguments": [1]}),
    ("tools/call", {"name": "add", "_meta": [1]}),
    ("tools/call", None),
    ("resources/read", {"uri": "no URI"}),
    ("prompts/get", {"name": "explain", "arguments": {"what": 5}}),
]


@pytest.mark.parametrize("name", SERVERS)
def test_a_request_that_the_sdk_refuses_before_any_handler_is_one_event(name: str, tmp_path: Path) -> None:
    good = ("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}})
    asked = [
        {"id": id, "method": method, "params": params} for id, (method, params) in enumerate([*MALFORMED, good], 2)
    ]

    _, *answers = conversation(name, tmp_path, asked)[0]

    *refused, done = Service(name, tmp_path, lambda: None).events(len(asked))
    assert [answer.get("error", {}).get("code") for answer in answers] == [-32602] * len(MALFORMED) + [None]
    assert [event["event_type"] for event in refused] == [EVENT_TYPES[method] for method, _ in MALFORMED]
    assert [event["jsonrpc_id"] for event in refused] == [str(each["id"]) for each in asked[:-1]]
    assert {(event["outcome"], event["error_type"]) for event in refused} == {("error", "-32602")}
    assert [event["action"]["mcp_tool"] for event in refused] == ["", "add", "", "", ""]
    assert done["outcome"] == "success"


def test_a_call_before_the_handshake_is_one_event(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("early")
    offer_echo(server)
    call = types.JSONRPCRequest(jsonrpc="2.0", id="first", method="tools/call", params={"name": "echo"})

    async def work() -> Any:
        async with asyncio.timeout(60), create_client_server_memory_streams() as ((read, write), streams):
            serving = asyncio.create_task(server.run(*streams, server.create_initialization_options()))
            await write.send(SessionMessage(types.JSONRPCMessage(call)))
            answer = await read.receive()
            serving.cancel()
            return answer

    with recorder(tmp_path) as audit:
        audit_server(server, audit, principal=lambda _: otel_audit.AuditPrincipal(username="ann"))
        answer = asyncio.run(work())

    (event,) = Service("early", tmp_path, lambda: None).all_events()
    assert answer.message.root.error.code == -32602
    assert (event["outcome"], event["error_type"], event["jsonrpc_id"]) == ("error", "-32602", "first")
    assert (event["action"]["mcp_tool"], event["principal"]["username"]) == ("echo", "ann")


def test_a_call_that_its_handler_refuses_by_the_same_error_is_one_event(tmp_path: Path) -> None:
    server: Server[Any, Any] = Server("prompts")

    @server.get_prompt()
    async def get_prompt(name: str, arguments: dict[str, str] | None) -> types.GetPromptResult:
        raise McpError(types.ErrorData(code=types.INVALID_PARAMS, message="no such prompt"))

    async def work() -> None:
        async with asyncio.timeout(60), create_connected_server_and_client_session(server) as session:
            with pytest.raises(McpError):
                await session.get_prompt("none")

    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        asyncio.run(work())

        assert audit.stats().emitted == 1


def test_uninstrument_ends_the_recording_of_servers_that_have_run_and_instrument_begins_it_again(
    tmp_path: Path,
) -> None:
    server: Server[Any, Any] = Server("on and off")
    offer_echo(server)
    auditor = MCPAuditor()
    before = dict(vars(Server))
    with recorder(tmp_path / "one") as one, recorder(tmp_path / "two") as two:
        auditor.instrument(audit=one)
        assert call_echo(server) == "mcp.tools.call"
        auditor.uninstrument()
        assert call_echo(server) == "none"
        auditor.instrument(audit=two)
        assert call_echo(server) == "mcp.tools.call"
        auditor.uninstrument()

        assert (one.stats().emitted, two.stats().emitted) == (1, 1)
    assert dict(vars(Server)) == before


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


def test_a_check_that_would_not_be_recorded_below_fastmcp_4_is_refused(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit, pytest.raises(RuntimeError, match="audited_check: expected fastmcp 4, got 3"):
        audited_check(audit, lambda context: True)
