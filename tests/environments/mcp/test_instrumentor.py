"""Servers with no line of ours, under `opentelemetry-instrument`, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Service, client
from sdk import IS_SDK1, MODES

from tests.servers.polling import poll
from tests.servers.ports import LOOPBACK, free_port
from tests.servers.process import ServerProcess

INSTRUMENT = str(Path(sys.executable).with_name("opentelemetry-instrument"))

MAKING = {
    "sdk1": "from mcp.server.fastmcp import FastMCP as Server",
    "sdk2": "from mcp.server.mcpserver import MCPServer as Server",
    "fastmcp": "from fastmcp import FastMCP as Server",
}
NAMES = ["sdk1", "fastmcp"] if IS_SDK1 else ["sdk2", "fastmcp"]

TOOLS = """
import os, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider())
server = Server("calculator")

@server.tool()
def add(a: int, b: int) -> str:
    return str(a + b)

@server.tool()
def fail() -> str:
    raise ValueError("the password is hunter2")
"""

RUNNING = """
if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        import uvicorn

        app = server.http_app() if hasattr(server, "http_app") else server.streamable_http_app()
        uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""

ITS_OWN_LOGGER = """
import otel_audit
from otel_audit.integrations.mcp import audit_server

audit_server(server, otel_audit.configure(directory=os.environ["OWN_DIR"]))
"""

MOUNTED = """
inner, server = server, Server("outer")
server.mount(inner, namespace="inner")

@server.tool()
async def relay() -> str:
    answer = await server.call_tool("inner_add", {"a": 20, "b": 22})
    return answer.content[0].text
"""


def command_of(name: str, directory: Path, transport: str, more: str = "") -> list[str]:
    code = directory / "server.py"
    code.write_text("\n".join([MAKING[name], TOOLS, more, RUNNING]), encoding="utf-8")
    return [INSTRUMENT, sys.executable, str(code), transport]


def environment_of(directory: Path) -> dict[str, str]:
    return {
        "OTEL_AUDIT_DIR": str(directory / "audit"),
        "OTEL_AUDIT_EXPORT": "none",
        "OTEL_SERVICE_NAME": "calculator",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OWN_DIR": str(directory / "own"),
        "PATH": os.environ["PATH"],
    }


def over_stdio(name: str, directory: Path, mode: str, more: str = "") -> AbstractAsyncContextManager[client.Session]:
    return client.over_stdio(command_of(name, directory, "stdio", more), environment_of(directory), mode)


@contextmanager
def over_http(name: str, directory: Path) -> Iterator[str]:
    port = free_port()
    process = ServerProcess(command_of(name, directory, str(port)), log=directory / "said", ready=lambda: listens(port))
    process.start(environment_of(directory))
    try:
        yield f"http://{LOOPBACK}:{port}/mcp"
    finally:
        process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


async def add_and_fail(url: str, mode: str) -> None:
    def headers() -> Mapping[str, str]:
        return {}

    async with asyncio.timeout(120), client.over_http(url, headers, mode) as session:
        assert await session.call("add", {"a": 1, "b": 2}) == ("3", False)
        await session.call("fail")


def calls_in(directory: Path, count: int) -> list[tuple[str, str, str]]:
    """The calls in a journal, as soon as there are so many; more than that are in it too."""
    service = Service("calculator", directory, lambda: None)

    def calls() -> list[dict[str, Any]]:
        return [event for event in service.all_events() if event["event_type"] == "mcp.tools.call"]

    found = poll(calls, until=lambda events: len(events) >= count, what=f"{count} calls")
    return [(event["action"]["mcp_tool"], event["outcome"], event["source"]["transport"]) for event in found]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_each_call_over_stdio_is_one_event(name: str, mode: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with asyncio.timeout(120), over_stdio(name, tmp_path, mode) as session:
            assert await session.call("add", {"a": 1, "b": 2}) == ("3", False)
            await session.call("fail")

    asyncio.run(work())

    assert calls_in(tmp_path / "audit", 2) == [("add", "success", "mcp-stdio"), ("fail", "mcp_error", "mcp-stdio")]


@pytest.mark.parametrize("name", NAMES)
def test_each_call_over_http_is_one_event_inside_that_of_its_request(name: str, tmp_path: Path) -> None:
    with over_http(name, tmp_path) as url:
        for mode in MODES:
            asyncio.run(add_and_fail(url, mode))
        service = Service(name, tmp_path / "audit", lambda: None)
        calls = service.wait_for(2 * len(MODES), "mcp.tools.call")

    assert [(call["action"]["mcp_tool"], call["outcome"]) for call in calls] == [
        ("add", "success"),
        ("fail", "mcp_error"),
    ] * len(MODES)
    kinds = {event["event_id"]: event["event_type"] for event in service.all_events()}
    assert {kinds[call["parent_id"]] for call in calls} == {"http.request"}
    if IS_SDK1:  # with OpenTelemetry's instrumentor of Starlette beside ours; SDK 2.x makes spans without one
        spans = {event["event_id"]: event["span_id"] for event in service.all_events()}
        assert [spans[call["parent_id"]] for call in calls] == [call["span_id"] for call in calls]
    assert "hunter2" not in service.text()


def test_instrumenting_imports_no_sdk_before_the_instrumentors_of_what_it_is_built_on() -> None:
    """They put another class in the place of Starlette's, which modules that were imported by then do not see."""
    code = """
import sys
from otel_audit.integrations import auto as instrumentors

auditors = [instrumentors.MCPAuditor(), instrumentors.FastMCPAuditor()]
for auditor in auditors:
    auditor.instrument()
assert not {"mcp", "fastmcp", "starlette"} & set(sys.modules), "imported"
import mcp.server.lowlevel.server as server
assert server.Server.run.__wrapped__
auditors[0].uninstrument()
assert not hasattr(server.Server.run, "__wrapped__")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_audits_itself_keeps_its_own_logger(name: str, tmp_path: Path) -> None:
    async def work() -> None:
        async with asyncio.timeout(120), over_stdio(name, tmp_path, MODES[0], ITS_OWN_LOGGER) as session:
            await session.call("add", {"a": 1, "b": 2})

    asyncio.run(work())

    assert calls_in(tmp_path / "own", 1) == [("add", "success", "mcp-stdio")]
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_cannot_be_audited_does_not_start(name: str, tmp_path: Path) -> None:
    environment = {**environment_of(tmp_path), "OTEL_AUDIT_DIR": "/proc/audit"}

    done = subprocess.run(
        command_of(name, tmp_path, "stdio"),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert "JournalUnwritable: /proc/audit" in done.stderr
    assert done.stdout == ""


if not IS_SDK1:

    def test_a_call_of_a_mounted_server_is_one_event_and_those_that_tools_make_are_their_own(tmp_path: Path) -> None:
        async def work() -> None:
            async with asyncio.timeout(120), over_stdio("fastmcp", tmp_path, MODES[0], MOUNTED) as session:
                assert await session.call("inner_add", {"a": 1, "b": 2}) == ("3", False)
                assert await session.call("relay") == ("42", False)

        asyncio.run(work())

        tools = [tool for tool, *_ in calls_in(tmp_path / "audit", 3)]
        assert tools == ["inner_add", "inner_add", "relay"]
