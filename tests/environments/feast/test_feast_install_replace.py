"""`install(replace=True)`: exactly one event a request and one a tool call, and without what Feast gets wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from feature_store import ASK
from test_feast_install_served import ENDED, TOOL, ask_over_mcp, ask_over_rest, served

from tests.chain_check import application_events

NOBODY = "192.0.2.99"  # uvicorn itself would believe what comes from this machine


def test_each_rest_request_is_one_event_of_ours_with_the_status_that_the_client_got(tmp_path: Path) -> None:
    with served(tmp_path, "gunicorn", REPLACE="yes", FORWARDED_ALLOW_IPS=NOBODY) as service:
        asked = ask_over_rest(service.url)

        assert service.end() == ENDED["gunicorn"]

        events = application_events(tmp_path / "audit")
        assert sorted(f"{event['action']['path']} {event['status_code']}" for event in events) == sorted(asked)
        assert {event["source"]["ip"] for event in events} == {"127.0.0.1"}  # no header is believed
        assert service.written_by_feast() == []
        assert len(service.delivered()) == len(events)


def test_a_tool_call_and_the_request_inside_it_are_one_event_each(tmp_path: Path) -> None:
    with served(tmp_path, "uvicorn", REPLACE="yes") as service:
        asyncio.run(ask_over_mcp(service.url))

        assert service.end() == ENDED["uvicorn"]

        events = application_events(tmp_path / "audit")
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
        assert service.written_by_feast() == []
        assert len(service.delivered()) == len(events)


def test_a_rest_request_has_the_user_whom_feast_has_verified_and_its_denial_is_one(tmp_path: Path) -> None:
    with served(tmp_path, "uvicorn", REPLACE="yes", WITH_AUTH="yes") as service:
        for headers in ({"Authorization": "Bearer ann:reader"}, {"Authorization": "Bearer bob:guest"}, {}):
            httpx.post(f"{service.url}/get-online-features", json=ASK, headers=headers, timeout=60, trust_env=False)

        assert service.end() == ENDED["uvicorn"]

        events = application_events(tmp_path / "audit")
        assert [(event["outcome"], event["status_code"]) for event in events] == [
            ("success", 200),
            ("denied", 403),
            ("denied", 401),
        ]
        assert [(event["principal"]["username"], event["principal"]["roles"]) for event in events] == [
            ("ann", ["reader"]),
            ("bob", ["guest"]),
            ("", []),
        ]
