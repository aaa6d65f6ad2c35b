"""Where the loss rule is `closed`: a call is in the trail before it runs, or it does not run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Service
from sdk import SERVERS

CLOSED = {"OTEL_AUDIT_ON_LOSS": "closed", "OTEL_AUDIT_DURABILITY": "fsync"}
REFUSAL = "could not be recorded"


@pytest.mark.parametrize("name", SERVERS)
def test_a_call_is_recorded_before_it_runs_and_when_it_ends(name: str, run_service: Callable[..., Service]) -> None:
    service = run_service(name, CLOSED)

    async def work() -> None:
        async with asyncio.timeout(120), service.connect() as session:
            await asyncio.gather(*(session.call("add", {"a": number, "b": 0}) for number in range(5)))
            await session.call_and_cancel("wait")
            await session.call("lookup")

    asyncio.run(work())

    events = service.events((5 + 1 + 1 + 1) * 2)
    begun = {event["event_id"]: event for event in events if event["outcome"] == "unknown"}
    ended = [event for event in events if event["outcome"] != "unknown"]
    assert sorted(event["parent_id"] for event in ended) == sorted(begun)
    assert all(
        begun[event["parent_id"]][key] == event[key]
        for event in ended
        for key in ("request_id", "event_type", "principal")
    )
    (inner,) = (event for event in begun.values() if event["event_type"] == "http.request")
    assert begun[inner["parent_id"]]["action"]["mcp_tool"] == "lookup"
    assert [event["outcome"] for event in ended if event["action"]["mcp_tool"] == "wait"] == ["cancelled"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_call_that_cannot_be_recorded_does_not_run(
    name: str, run_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = run_service(name, {**CLOSED, "MOST_BYTES_OF_A_FILE": "20000"})

    async def work() -> tuple[int, str]:
        async with asyncio.timeout(120), service.connect() as session:
            for number in range(100):
                try:
                    text, is_error = await session.call("mark", {"path": str(tmp_path / str(number))})
                except Exception as error:
                    text, is_error = str(error), True
                if is_error:
                    return number, text
        return 100, ""

    marked, said = asyncio.run(work())

    assert 0 < marked < 100
    assert REFUSAL in said
    assert str(service.directory) not in said
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(marked))
    assert len(service.all_events()) in (2 * marked - 1, 2 * marked)  # the last end may have found no room
