"""Each call of a client is one event, over HTTP: who, what, how it ended, and whose trace it is part of."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable
from typing import Any

import pytest
from conftest import Service
from sdk import IS_SDK1, MODES
from tools import RESOURCE_URI, SECRET

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"

pytestmark = pytest.mark.parametrize("mode", MODES)


def run(work: Awaitable[Any]) -> Any:
    async def within_time() -> Any:
        async with asyncio.timeout(120):
            return await work

    return asyncio.run(within_time())


def traceparent(number: int) -> str:
    return f"00-{number:032x}-{number:016x}-01"


def test_a_tool_call_says_who_did_what_and_how_it_ended(service: Service, mode: str) -> None:
    async def work() -> tuple[str, bool]:
        async with service.connect(mode) as session:
            return await session.call("add", {"b": 3, "a": 2})

    assert run(work()) == ("5", False)

    event = service.event()
    assert event["event_type"] == "mcp.tools.call"
    assert event["action"]["mcp_tool"] == "add"
    assert event["action"]["arguments_digest"] == hashlib.sha256(b'{"a":2,"b":3}').hexdigest()
    assert event["outcome"] == "success"
    assert event["jsonrpc_id"].isdecimal()
    assert event["duration_ms"] > 0
    assert event["principal"] == {
        "username": "alice",
        "roles": [],
        "auth_type": "bearer",
        "id": "alice",
        "issuer": "https://issuer.example",
        "kind": "user",
    }
    assert event["source"]["ip"] == "127.0.0.1"
    assert event["source"]["transport"] == "mcp-http"
    assert event["action"]["path"].rstrip("/") == "/mcp"
    assert event["attributes"]["mcp.auth.client_id"] == "notebook"
    assert event["attributes"]["mcp.auth.scopes"] == ["features:read", "features:write"]
    assert event["attributes"]["mcp.auth.issuer"] == "https://issuer.example"
    assert event["attributes"]["mcp.client.asserted_name"] == "tests"


def test_a_token_without_a_subject_is_a_service(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode, token="token-of-a-service") as session:
            await session.call("add", {"a": 1, "b": 1})

    run(work())

    principal = service.event()["principal"]
    assert (principal["username"], principal["kind"]) == ("batch-job", "service")


def test_what_a_client_says_of_its_user_is_recorded_as_said_and_not_believed(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode) as session:
            await session.call("add", {"a": 1, "b": 1}, meta={"example.org/user_id": "root", "tenant": "blue"})

    run(work())

    event = service.event()
    assert event["principal"]["username"] == "alice"
    assert event["attributes"]["mcp.client.asserted_user"] == "root"
    assert event["attributes"]["mcp.client.asserted_tenant"] == "blue"


def test_a_tool_that_fails_is_an_mcp_error_without_its_message(service: Service, mode: str) -> None:
    async def work() -> tuple[str, bool]:
        async with service.connect(mode) as session:
            return await session.call("fail")

    assert run(work())[1]

    event = service.event()
    assert event["outcome"] == "mcp_error"
    assert event["error_type"] == ("ValueError" if service.name == "fastmcp" and not IS_SDK1 else "tool_error")
    assert SECRET not in service.text()


def test_a_tool_that_does_not_exist_is_an_mcp_error_with_its_name(service: Service, mode: str) -> None:
    async def work() -> tuple[str, bool]:
        async with service.connect(mode) as session:
            return await session.call("no_such_tool", {})

    assert run(work())[1]

    event = service.event()
    assert (event["outcome"], event["action"]["mcp_tool"]) == ("mcp_error", "no_such_tool")


def test_a_tool_says_in_its_event_that_it_denied_the_call(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode) as session:
            await session.call("deny")

    run(work())

    event = service.event()
    assert (event["outcome"], event["reason"]) == ("denied", "not the owner")


def test_a_resource_read_names_the_resource(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode) as session:
            await session.read(RESOURCE_URI)

    run(work())

    event = service.event()
    assert event["event_type"] == "mcp.resources.read"
    assert (event["resource"]["type"], event["resource"]["name"]) == ("mcp.resource", RESOURCE_URI)
    assert event["outcome"] == "success"


def test_a_resource_that_does_not_exist_is_an_error(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode) as session:
            with pytest.raises(Exception, match=r".+"):
                await session.read("features://nowhere")

    run(work())

    event = service.event()
    assert (event["outcome"], event["resource"]["name"]) == ("error", "features://nowhere")
    assert event["error_type"]


def test_a_prompt_names_the_prompt_and_digests_its_arguments(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode) as session:
            await session.prompt("explain", {"what": "drift"})

    run(work())

    event = service.event()
    assert event["event_type"] == "mcp.prompts.get"
    assert (event["resource"]["type"], event["resource"]["name"]) == ("mcp.prompt", "explain")
    assert event["action"]["arguments_digest"] == hashlib.sha256(b'{"what":"drift"}').hexdigest()


def test_fifty_calls_at_once_in_one_session_have_fifty_traces(service: Service, mode: str) -> None:
    numbers = range(1, 51)

    async def work() -> list[tuple[str, bool]]:
        async with service.connect(mode) as session:
            calls = (
                session.call("add", {"a": number, "b": 0}, meta={"traceparent": traceparent(number)})
                for number in numbers
            )
            return list(await asyncio.gather(*calls))

    assert run(work()) == [(str(number), False) for number in numbers]

    events = service.events(50)
    digests = {f"{number:032x}": hashlib.sha256(b'{"a":%d,"b":0}' % number).hexdigest() for number in numbers}
    assert {event["trace_id"]: event["action"]["arguments_digest"] for event in events} == digests
    assert len({event["jsonrpc_id"] for event in events}) == 50
    assert len({event["event_id"] for event in events}) == 50


def test_the_header_of_a_request_without_a_server_span_is_kept_and_not_believed(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode, headers={"traceparent": traceparent(1)}) as session:
            await session.call("add", {"a": 1, "b": 1})

    run(work())

    event = service.event()
    assert "trace_id" not in event
    assert event["attributes"]["audit.request.traceparent"] == traceparent(1)


def test_the_trace_in_the_message_counts_before_that_of_the_request(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode, headers={"traceparent": traceparent(7)}) as session:
            await session.call("add", {"a": 1, "b": 1}, meta={"traceparent": f"00-{TRACE}-{SPAN}-01"})

    run(work())

    event = service.event()
    assert (event["trace_id"], event["span_id"], event["trace_flags"]) == (TRACE, SPAN, 1)


def test_a_call_without_a_trace_has_none(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode) as session:
            await session.call("add", {"a": 1, "b": 1}, meta={"traceparent": "00-nonsense"})

    run(work())

    assert "trace_id" not in service.event()


def test_a_call_that_the_client_cancels_is_cancelled(service: Service, mode: str) -> None:
    async def work() -> None:
        async with service.connect(mode) as session:
            await session.call_and_cancel("wait")
            assert await session.call("add", {"a": 1, "b": 1}) == ("2", False)

    run(work())

    events = {event["action"]["mcp_tool"]: event for event in service.events(2)}
    assert events["wait"]["outcome"] == "cancelled"
    assert events["wait"]["error_type"] == "CancelledError"
    assert events["add"]["outcome"] == "success"


def test_progress_reaches_the_client_and_is_no_event(service: Service, mode: str) -> None:
    steps: list[float] = []

    async def on_progress(progress: float, *_: Any) -> None:
        steps.append(progress)

    async def work() -> tuple[str, bool]:
        async with service.connect(mode) as session:
            return await session.call("report", {}, progress=on_progress)

    assert run(work()) == ("reported", False)

    assert steps == [0.25, 0.5, 1.0]
    assert service.event()["action"]["mcp_tool"] == "report"


def test_a_rest_request_inside_a_tool_has_the_call_as_its_parent(service: Service, mode: str) -> None:
    async def work() -> list[tuple[str, bool]]:
        async with service.connect(mode) as session:
            return list(await asyncio.gather(*(session.call("lookup") for _ in range(5))))

    requests = {text for text, _ in run(work())}

    events = {event["event_id"]: event for event in service.events(10)}
    calls = {each: event["request_id"] for each, event in events.items() if event["event_type"] == "mcp.tools.call"}
    assert len(calls) == 5
    assert {events[request]["parent_id"] for request in requests} == set(calls)
    assert all(events[request]["request_id"] == calls[events[request]["parent_id"]] for request in requests)


def test_a_refusal_by_exception_is_a_denial_where_the_exception_can_be_seen(service: Service, mode: str) -> None:
    is_protocol_error = service.name == "sdk2-lowlevel"  # whose handler lets it through; others make an answer of it

    async def work() -> None:
        async with service.connect(mode) as session:
            with pytest.raises(Exception, match=r".+") if is_protocol_error else contextlib.nullcontext():
                await session.call("forbid")

    run(work())

    is_seen = is_protocol_error or (service.name == "fastmcp" and not IS_SDK1)
    assert service.event()["outcome"] == ("denied" if is_seen else "mcp_error")
