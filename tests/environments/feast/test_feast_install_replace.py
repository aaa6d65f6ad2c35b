"""`install(replace=True)`: exactly one event a request and one a tool call, and without what Feast gets wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from feature_store import ASK
from test_feast_install_served import ENDED, TOOL, ask_over_mcp, ask_over_rest, mcp_session, served

from tests.chain_check import application_events
from tests.servers.span_file import spans_in

NOT_TRUSTED = "192.0.2.99"  # uvicorn itself would believe what comes from this machine

ANN = {"username": "ann", "roles": ["reader"], "auth_type": "oidc"}
BOB = {"username": "bob", "roles": ["guest"], "auth_type": "oidc"}
NOBODY: dict[str, Any] = {"username": "", "roles": [], "auth_type": ""}


def test_each_rest_request_is_one_event_of_ours_with_the_status_that_the_client_got(tmp_path: Path) -> None:
    with served(tmp_path, "gunicorn", REPLACE="yes", FORWARDED_ALLOW_IPS=NOT_TRUSTED) as service:
        asked = ask_over_rest(service.url)

        assert service.end() == ENDED["gunicorn"]

        events = application_events(tmp_path / "audit")
        assert sorted(f"{event['action']['path']} {event['status_code']}" for event in events) == sorted(asked)
        assert {event["source"]["ip"] for event in events} == {"127.0.0.1"}  # no header is believed
        assert service.written_by_feast() == []
        assert len(service.delivered()) == len(events)


@pytest.mark.parametrize(("transport", "posted_to"), [("http", "/mcp"), ("sse", "/sse/messages/")])
def test_a_tool_call_and_the_request_inside_it_are_one_event_each_in_the_trace_of_the_post_that_carried_the_call(
    tmp_path: Path, transport: str, posted_to: str
) -> None:
    with served(tmp_path, "uvicorn", transport, REPLACE="yes", SPANS=str(tmp_path / "spans")) as service:
        asyncio.run(ask_over_mcp(service.url, transport))

        assert service.end() == ENDED["uvicorn"]

        recorded = application_events(tmp_path / "audit")
        events = [event for event in recorded if not event["action"]["path"].startswith("/sse") or is_call(event)]
        assert [(event["event_type"], event["outcome"]) for event in events] == [
            ("http.request", "success"),
            ("mcp.tools.call", "success"),
            ("http.request", "failure"),
            ("mcp.tools.call", "mcp_error"),
        ]
        for request, call in (events[:2], events[2:]):
            assert request["parent_id"] == call["event_id"]
            assert request["request_id"] == call["request_id"]
            assert call["action"]["mcp_tool"] == TOOL
        spans = spans_in(tmp_path / "spans")
        calls = list(filter(is_call, events))
        assert [spans[call["span_id"]].name for call in calls] == [f"POST {posted_to}"] * 2
        assert len({call["trace_id"] for call in calls}) == 2
        assert [request["trace_id"] for request in events[::2]] == [call["trace_id"] for call in calls]
        if transport == "sse":  # Feast records what carries the messages of this one, and so do we
            posts = {event["event_id"]: event for event in recorded if event["action"]["path"] == posted_to}
            assert [posts[call["parent_id"]]["request_id"] for call in calls] == [call["request_id"] for call in calls]
        assert service.written_by_feast() == []
        assert len(service.delivered()) == len(recorded)


def is_call(event: Mapping[str, Any]) -> bool:
    return bool(event["event_type"] == "mcp.tools.call")


def test_requests_and_tool_calls_have_the_user_whom_feast_has_verified_and_a_denial_is_one(tmp_path: Path) -> None:
    async def call(url: str, headers: Mapping[str, str]) -> None:
        async with mcp_session(url, headers) as session:
            await session.call_tool(TOOL, ASK)

    with served(tmp_path, "uvicorn", REPLACE="yes", WITH_AUTH="yes") as service:
        for headers in ({"Authorization": "Bearer ann:reader"}, {"Authorization": "Bearer bob:guest"}, {}):
            httpx.post(f"{service.url}/get-online-features", json=ASK, headers=headers, timeout=60, trust_env=False)
            asyncio.run(call(service.url, headers))

        assert service.end() == ENDED["uvicorn"]

    events = application_events(tmp_path / "audit")
    of_user = [events[at : at + 3] for at in range(0, 9, 3)]
    assert [[event["event_type"] for event in each] for each in of_user] == [
        ["http.request", "http.request", "mcp.tools.call"]
    ] * 3
    assert [[event["principal"] for event in each] for each in of_user] == [[ANN] * 3, [BOB] * 3, [NOBODY] * 3]
    requests = [event for event in events if event["event_type"] == "http.request"]
    ends = [("success", 200), ("denied", 403), ("denied", 401)]
    assert [(event["outcome"], event["status_code"]) for event in requests] == [end for end in ends for _ in range(2)]
