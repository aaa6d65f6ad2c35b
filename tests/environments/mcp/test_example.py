"""The example of a FastMCP server, as a client starts it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from conftest import REPOSITORY, Service, client, environment_of
from sdk import IS_SDK1

if not IS_SDK1:

    def test_the_example_records_the_view_that_each_call_asked_for(tmp_path: Path) -> None:
        command = [sys.executable, str(REPOSITORY / "examples" / "fastmcp_server.py")]

        async def work() -> None:
            async with (
                asyncio.timeout(120),
                client.over_stdio(command, environment_of(tmp_path / "audit"), "legacy") as session,
            ):
                found = await session.call("get_online_features", {"view": "driver_stats"})
                assert (found[0].replace(" ", ""), found[1]) == ('{"trips_today":7}', False)
                await session.call("get_online_features", {"view": "nothing"})

        asyncio.run(work())

        events = Service("fastmcp", tmp_path / "audit", lambda: None).events(2)
        assert [(event["resource"]["name"], event["outcome"]) for event in events] == [
            ("driver_stats", "success"),
            ("nothing", "mcp_error"),
        ]
