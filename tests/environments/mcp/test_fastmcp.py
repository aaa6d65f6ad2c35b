"""FastMCP: its middleware sees the exceptions of tools, and the calls that tools make."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import mcp.types as types
import pytest
from conftest import Service
from fastmcp import Client, Context, FastMCP
from fastmcp.exceptions import AuthorizationError
from fastmcp.server.middleware import Middleware, MiddlewareContext
from fastmcp.server.transforms import ToolTransform
from fastmcp.tools import InputRequiredToolResult
from fastmcp.tools.tool_transform import ToolTransformConfig

from otel_audit.integrations.auto import FastMCPAuditor
from otel_audit.integrations.mcp import audit_server
from tests.recording import recorder


class Guard(Middleware):
    """Lets nobody call the tool `drop`."""

    async def on_call_tool(self, context: MiddlewareContext[Any], call_next: Any) -> Any:
        if context.message.name == "drop":
            raise AuthorizationError("not for you")
        return await call_next(context)


def a_server() -> FastMCP[Any]:
    server: FastMCP[Any] = FastMCP("fast", middleware=[Guard()])

    @server.tool()
    def add(a: int, b: int) -> str:
        return str(a + b)

    @server.tool()
    def drop() -> str:
        return "dropped"

    @server.tool()
    async def ask() -> types.InputRequiredResult:
        return types.InputRequiredResult(request_state="half way")

    @server.tool()
    async def relay(ctx: Context) -> str:
        answer = await ctx.fastmcp.call_tool("add", {"a": 20, "b": 22})
        return str(answer.content[0].text)

    return server


def events_of(directory: Path, work: Callable[[FastMCP[Any]], Awaitable[Any]]) -> list[dict[str, Any]]:
    """What is recorded of this work on an audited server."""

    async def within_time() -> None:
        async with asyncio.timeout(60):
            await work(server)

    with recorder(directory) as audit:
        server = audit_server(audit_server(a_server(), audit), audit)
        asyncio.run(within_time())
    return Service("fastmcp", directory, lambda: None).all_events()


def test_what_another_middleware_refuses_is_denied(tmp_path: Path) -> None:
    async def work(server: FastMCP[Any]) -> None:
        async with Client(server) as client:
            with pytest.raises(Exception, match="not for you"):
                await client.call_tool("drop", {})

    (event,) = events_of(tmp_path, work)

    assert (event["outcome"], event["error_type"]) == ("denied", "AuthorizationError")


def test_a_call_that_a_tool_makes_is_an_event_of_its_own_with_the_tool_as_its_parent(tmp_path: Path) -> None:
    async def work(server: FastMCP[Any]) -> None:
        async with Client(server) as client:
            await client.call_tool("relay", {})

    add, relay = events_of(tmp_path, work)

    assert [event["action"]["mcp_tool"] for event in (add, relay)] == ["add", "relay"]
    assert add["parent_id"] == relay["event_id"]
    assert (add["jsonrpc_id"], add["request_id"]) == (relay["jsonrpc_id"], relay["request_id"])
    assert add["action"]["arguments_digest"] != relay["action"]["arguments_digest"]


def test_a_call_that_asks_the_client_for_more_has_no_success_yet(tmp_path: Path) -> None:
    async def work(server: FastMCP[Any]) -> None:
        answer = await server.call_tool("ask", {})
        assert isinstance(answer, InputRequiredToolResult)

    (event,) = events_of(tmp_path, work)

    assert event["outcome"] == "input_required"


def test_a_tool_that_runs_out_of_time_is_cancelled(tmp_path: Path) -> None:
    async def work(server: FastMCP[Any]) -> None:
        @server.tool(timeout=0.01)
        async def waits_for_its_time_to_end() -> None:
            await asyncio.Event().wait()

        @server.tool()
        async def gives_up() -> None:
            raise TimeoutError

        async with Client(server) as client:
            for name in ("waits_for_its_time_to_end", "gives_up"):
                assert (await client.call_tool(name, {}, raise_on_error=False)).is_error

    events = events_of(tmp_path, work)

    assert [(event["outcome"], event["error_type"]) for event in events] == [("cancelled", "TimeoutError")] * 2


def test_a_call_that_no_client_made_is_local(tmp_path: Path) -> None:
    async def work(server: FastMCP[Any]) -> None:
        await server.call_tool("add", {"a": 1, "b": 2})

    (event,) = events_of(tmp_path, work)

    assert event["source"]["transport"] == "mcp-local"
    assert event["outcome"] == "success"
    assert "jsonrpc_id" not in event


@pytest.mark.parametrize("is_audited", [False, True])
def test_a_mounted_server_is_recorded_through_the_one_it_is_mounted_on(tmp_path: Path, is_audited: bool) -> None:
    outer, inner = FastMCP[Any]("outer"), a_server()
    outer.mount(inner, namespace="inner")

    @inner.resource("rows://{view}/all")
    def rows(view: str) -> str:
        return view

    @inner.prompt()
    def explain(what: str) -> str:
        return what

    async def work() -> None:
        async with asyncio.timeout(60), Client(outer) as client:
            await client.call_tool("inner_add", {"a": 1, "b": 2})
            await client.read_resource("rows://inner/drivers/all")
            await client.get_prompt("inner_explain", {"what": "drift"})

    with recorder(tmp_path) as audit:
        audit_server(outer, audit)
        if is_audited:
            audit_server(inner, audit)
        asyncio.run(work())

    tool, resource, prompt = Service("fastmcp", tmp_path, lambda: None).all_events()
    assert tool["action"]["mcp_tool"] == "inner_add"
    assert [event["resource"]["name"] for event in (resource, prompt)] == ["rows://inner/drivers/all", "inner_explain"]


@pytest.mark.parametrize("tool", ["inner_relay", "forwarded"])
def test_a_call_that_a_tool_of_a_mounted_server_makes_is_an_event_of_its_own(tmp_path: Path, tool: str) -> None:
    outer, inner = FastMCP[Any]("outer"), a_server()
    outer.mount(inner, namespace="inner")
    if tool == "forwarded":
        outer.add_transform(ToolTransform({"inner_relay": ToolTransformConfig(name="forwarded")}))

    async def work() -> None:
        async with asyncio.timeout(60), Client(outer) as client:
            await client.call_tool(tool, {})

    with recorder(tmp_path) as audit:
        audit_server(outer, audit)
        audit_server(inner, audit)
        asyncio.run(work())

    add, relay = Service("fastmcp", tmp_path, lambda: None).all_events()
    assert [event["action"]["mcp_tool"] for event in (add, relay)] == ["add", tool]
    assert add["parent_id"] == relay["event_id"]


def call_through_a_tool(outer: FastMCP[Any], other: FastMCP[Any]) -> None:
    """A tool of the outer server calls the other one, which is mounted there too: that does not say who calls it."""
    outer.mount(other, namespace="other")

    @outer.tool()
    async def relay_to_other() -> str:
        answer = await other.call_tool("add", {"a": 20, "b": 22})
        return str(answer.content[0].text)

    async def work() -> None:
        async with asyncio.timeout(60), Client(outer) as client:
            await client.call_tool("relay_to_other", {})

    asyncio.run(work())


def assert_that_each_is_an_event(directory: Path) -> None:
    add, relay = Service("fastmcp", directory, lambda: None).all_events()
    assert [event["action"]["mcp_tool"] for event in (add, relay)] == ["add", "relay_to_other"]
    assert add["parent_id"] == relay["event_id"]


def test_a_call_that_a_tool_makes_on_another_server_is_an_event_of_its_own(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        call_through_a_tool(audit_server(FastMCP[Any]("outer"), audit), audit_server(a_server(), audit))

    assert_that_each_is_an_event(tmp_path)


def test_a_call_that_a_tool_makes_on_another_server_is_one_for_the_instrumentor_too(tmp_path: Path) -> None:
    auditor = FastMCPAuditor()
    with recorder(tmp_path) as audit:
        auditor.instrument(audit=audit)
        try:
            call_through_a_tool(FastMCP[Any]("outer"), a_server())
        finally:
            auditor.uninstrument()

    assert_that_each_is_an_event(tmp_path)


def test_uninstrument_ends_the_recording_of_a_server_and_instrument_begins_it_again(tmp_path: Path) -> None:
    auditor = FastMCPAuditor()
    before = dict(vars(FastMCP))

    def call(server: FastMCP[Any]) -> None:
        asyncio.run(server.call_tool("add", {"a": 1, "b": 2}))

    with recorder(tmp_path / "one") as one, recorder(tmp_path / "two") as two:
        auditor.instrument(audit=one)
        server = a_server()
        call(server)
        auditor.uninstrument()
        call(server)
        auditor.instrument(audit=two)
        call(server)
        auditor.uninstrument()

        assert (one.stats().emitted, two.stats().emitted) == (1, 1)
    assert dict(vars(FastMCP)) == before
