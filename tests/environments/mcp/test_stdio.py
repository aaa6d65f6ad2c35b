"""Over stdio, where stdout carries the protocol and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from pipes import conversation

import pytest
from conftest import SERVICE, Service, client, environment_of
from sdk import MODES, SERVERS

from tests.servers.polling import poll


@pytest.mark.parametrize("mode", MODES)
def test_calls_over_stdio_are_recorded_as_those_of_nobody_in_particular(on_stdio: Service, mode: str) -> None:
    async def work() -> None:
        async with asyncio.timeout(120), on_stdio.connect(mode) as session:
            done = await session.call("add", {"a": 1, "b": 2}, meta={"traceparent": f"00-{7:032x}-{8:016x}-01"})
            assert done == ("3", False)
            await session.call("fail")
            await session.call_and_cancel("wait")
            await session.call("lookup")

    asyncio.run(work())

    events = {event["action"]["mcp_tool"] or "rest": event for event in on_stdio.events(5)}
    assert {tool: event["outcome"] for tool, event in events.items()} == {
        "add": "success",
        "fail": "mcp_error",
        "wait": "cancelled",
        "lookup": "success",
        "rest": "success",
    }
    assert events["add"]["source"] == {"ip": "", "transport": "mcp-stdio"}
    assert events["add"]["principal"]["username"] == ""
    assert events["add"]["trace_id"] == f"{7:032x}"
    assert "trace_id" not in events["fail"]
    assert events["rest"]["parent_id"] == events["lookup"]["event_id"]


@pytest.mark.parametrize("name", SERVERS)
def test_stdout_carries_the_protocol_and_nothing_else(name: str, tmp_path: Path) -> None:
    answers, spoken = conversation(
        name,
        tmp_path,
        [
            {"id": 2, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 1, "b": 2}}},
            {"id": 3, "method": "tools/call", "params": {"name": "fail", "arguments": {}}},
        ],
    )

    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert "mcp.tools.call" in spoken  # the console exporter speaks on stderr


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_delivers_what_a_dead_process_left_before_its_first_call(name: str, tmp_path: Path) -> None:
    environment = {**environment_of(tmp_path), "OTEL_AUDIT_EXPORT": "jsonl"}
    dying = "import os, otel_audit; otel_audit.configure().log_authn(outcome='success'); os._exit(0)"
    subprocess.run([sys.executable, "-c", dying], env={**environment, "OTEL_AUDIT_EXPORT": "ship"}, check=True)
    export = tmp_path / "export.jsonl"

    async def work() -> None:
        async with client.over_stdio([sys.executable, str(SERVICE), name, "stdio"], environment, MODES[0]):
            await asyncio.to_thread(poll, export.exists, what="what was left")

    asyncio.run(work())

    assert export.read_text().count("authn.success") == 1
