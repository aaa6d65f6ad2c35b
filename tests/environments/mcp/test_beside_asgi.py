"""Beside the ASGI middleware: the HTTP request that carried a call is the parent of its event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from conftest import Service
from sdk import MODES, SERVERS

BESIDE = {"AROUND": "audit", "OTEL_AUDIT_TRUSTED_PROXIES": "127.0.0.1"}


@pytest.mark.parametrize("name", SERVERS)
def test_each_call_belongs_to_the_request_that_carried_it(name: str, run_service: Callable[..., Service]) -> None:
    service = run_service(name, BESIDE)
    headers: dict[str, str] = {}

    async def work() -> None:
        async with asyncio.timeout(120):
            for mode in MODES:
                async with service.connect(mode, headers=headers) as session:
                    for number in range(3):
                        headers.update({"x-request-id": f"{mode}-{number}", "x-forwarded-for": f"198.51.100.{number}"})
                        await session.call("lookup")

    asyncio.run(work())

    wanted = [f"{mode}-{number}" for mode in MODES for number in range(3)]
    calls = service.wait_for(len(wanted), "mcp.tools.call")
    posts = {event["event_id"]: event for event in service.all_events() if event["action"]["path"].startswith("/mcp")}
    inner = {event["parent_id"] for event in service.all_events() if event["action"]["path"] == "/features"}
    assert [call["request_id"] for call in calls] == wanted
    assert [posts[call["parent_id"]]["request_id"] for call in calls] == wanted
    assert {posts[call["parent_id"]]["event_type"] for call in calls} == {"http.request"}
    assert [call["source"]["ip"][-1] for call in calls] == [each[-1] for each in wanted]
    assert inner == {call["event_id"] for call in calls}
