"""SDK 2.x: its middleware sees a request before the SDK has looked at its parameters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from pipes import conversation
from typing import Any

import mcp.types as types
import pytest
from conftest import Service
from mcp import Client
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sdk import SERVERS

import otel_audit
from otel_audit.integrations.auto import MCPAuditor
from otel_audit.integrations.mcp import audit_server
from tests.recording import recorder


@pytest.mark.parametrize("name", SERVERS)
def test_a_call_with_malformed_parameters_is_an_error(name: str, tmp_path: Path) -> None:
    conversation(name, tmp_path, [{"id": 2, "method": "tools/call", "params": {"name": 5, "arguments": [1]}}])

    (event,) = Service(name, tmp_path, lambda: None).events(1)
    assert (event["event_type"], event["outcome"], event["jsonrpc_id"]) == ("mcp.tools.call", "error", "2")
    assert event["error_type"] == "ValidationError"


def test_what_another_middleware_refuses_is_recorded(tmp_path: Path) -> None:
    async def refuse(ctx: Any, call_next: Any) -> Any:
        if ctx.method == "tools/call":
            raise PermissionError
        return await call_next(ctx)

    server: MCPServer[Any] = MCPServer("guarded", middleware=[refuse])

    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        with pytest.raises(Exception, match=r".+"):
            call(server, "add")

    assert '"outcome":"denied"' in text(tmp_path)


def test_a_caller_that_cannot_be_named_is_refused_and_recorded(tmp_path: Path) -> None:
    ran: list[str] = []
    server: MCPServer[Any] = MCPServer("named")

    @server.tool()
    async def add() -> str:
        ran.append("add")
        return "added"

    def find(request: Any) -> otel_audit.AuditPrincipal | None:
        raise LookupError("who?")

    with recorder(tmp_path) as audit:
        audit_server(server, audit, principal=find)
        with pytest.raises(Exception, match=r".+"):
            call(server, "add")

    assert ran == []
    assert '"error_type":"LookupError"' in text(tmp_path)


def test_the_event_belongs_to_the_span_that_the_sdk_makes_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("mcp.shared._otel._tracer", provider.get_tracer("tests"))
    server: MCPServer[Any] = MCPServer("traced")

    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        call(server, "add")

    (served,) = (each for each in spans.get_finished_spans() if each.name == "tools/call add" and each.kind.value == 1)
    assert f'"span_id":"{served.context.span_id:016x}"' in text(tmp_path)


def test_uninstrument_ends_the_recording_of_a_server_and_instrument_begins_it_again(tmp_path: Path) -> None:
    auditor = MCPAuditor()
    before = dict(vars(Server))
    with recorder(tmp_path / "one") as one, recorder(tmp_path / "two") as two:
        auditor.instrument(audit=one)
        server: MCPServer[Any] = MCPServer("on and off")
        call(server, "add")
        auditor.uninstrument()
        call(server, "add")
        auditor.instrument(audit=two)
        call(server, "add")
        auditor.uninstrument()

        assert (one.stats().emitted, two.stats().emitted) == (1, 1)
    assert dict(vars(Server)) == before


def test_a_call_that_asks_the_client_for_more_has_no_success_yet(tmp_path: Path) -> None:
    server: MCPServer[Any] = MCPServer("asking")

    @server.tool()
    async def ask() -> types.InputRequiredResult:
        return types.InputRequiredResult(request_state="half way")

    async def work() -> None:
        async with asyncio.timeout(60), Client(server) as client:
            answer = await client.session.call_tool("ask", {}, allow_input_required=True)
            assert isinstance(answer, types.InputRequiredResult)

    with recorder(tmp_path) as audit:
        audit_server(server, audit)
        asyncio.run(work())

    assert '"outcome":"input_required"' in text(tmp_path)


def call(server: Any, name: str) -> None:
    async def work() -> None:
        async with asyncio.timeout(60), Client(server) as client:
            await client.call_tool(name, {})

    asyncio.run(work())


def text(directory: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in directory.glob("*.jsonl"))
