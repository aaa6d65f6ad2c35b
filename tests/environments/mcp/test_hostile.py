"""Hostile calls, seeded: each is one well-formed event, and no secret is in any of them.

To each server 250 from a client of its SDK, and 125 that no such client would send; 2 000 and 1 000 with
OTEL_AUDIT_TESTS_LONG=1.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
from conftest import TOKEN, Service
from pydantic import TypeAdapter

from otel_audit import AuditEvent
from tests.chain_check import application_events
from tests.long_form import LONG

CALLS = 2_000 if LONG else 250
BODIES = CALLS // 2
SEED = 20_261_125

# In pieces, so that no scanner of this repository takes them for real.
SECRETS = [
    "ghp_" + "1A2b3C4d5E6f7G8h9I0jK1l2M3n4O5p6Q7r8",
    "AKIA" + "Q3EGRWHT7VZXCPLD",
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLWFsaWNl",
]
PIECES = ["", "a", "\x00", "\n", "\u2028", "\x7f", '"', "\\", "{}", "ünï", "\U0001f600", "%00", "../", "x" * 9_000]
# As JSON writes them: no client would.
RAW_PIECES = ["", "a", r"\ud800", r"\udfff\ud800", r"\u0000", r"\u2028", r"\/", "\ufeff", "x" * 9_000]
# Texts that look like many secrets at once, or as if something was hidden in them, and how many bytes of one are sent.
LARGE = ["\u200b", "password=a,", "token: ", "authorization: digest a=", "a\u200bpass=a1 ", "x"]
LARGEST = (10_000, 100_000, 1_000_000)
LARGEST_HEADER = 30_000  # with all others, of what the server takes
RAW_NUMBERS = ["NaN", "-Infinity", "1e999", "-0", "9" * 400, "null", "1.0", "[" * 150 + "]" * 150, "[" * 9_000]
NUMBERS = [None, True, -1, -0.0, 10**40, 1e308, 2**63]


def a_text(chance: random.Random) -> str:
    pieces = [chance.choice(PIECES) for _ in range(chance.randint(0, 4))]
    return " ".join([*pieces, chance.choice([*SECRETS, ""])])


def large(chance: random.Random, most: int) -> str:
    piece = chance.choice(LARGE)
    return piece * (most // len(piece.encode()))


def a_value(chance: random.Random, depth: int = 0) -> Any:
    match chance.randint(0, 5 if depth < 6 else 3):
        case 0 | 1:
            return a_text(chance)
        case 2:
            return chance.choice(NUMBERS)
        case 3:
            return chance.random()
        case 4:
            return [a_value(chance, depth + 1) for _ in range(3)]
    return {a_text(chance): a_value(chance, depth + 1) for _ in range(3)}


def an_event_of(kind: str, name: str, outcome: str, arguments: Any = None) -> dict[str, Any]:
    """What must be in the trail of a call. The digest proves that the arguments came as they were sent."""
    text = json.dumps(arguments, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return {
        "event_type": kind,
        "tool": name,
        "outcome": outcome,
        "digest": None if arguments is None else hashlib.sha256(text.encode()).hexdigest(),
    }


async def call(session: Any, chance: random.Random) -> dict[str, Any]:
    """One call with something hostile in it: mostly to a tool or prompt that exists, and then in its arguments."""
    claim = large(chance, chance.choice(LARGEST)) if chance.random() < 0.1 else a_text(chance)
    meta = {chance.choice(("user", "traceparent", "tracestate", claim)): claim, a_text(chance): a_value(chance)}
    match chance.choice(("repeat", "repeat", "choke", "add", "unknown", "read", "prompt")):
        case "repeat" | "choke" as name:
            is_large = len(claim) < 10_000 and chance.random() < 0.1
            arguments = {"value": large(chance, 100_000) if is_large else a_value(chance)}  # which the answer repeats
            _, is_error = await session.call(name, arguments, meta=meta)
            assert is_error is (name == "choke")  # the tool itself was reached: it takes any value
            return an_event_of("mcp.tools.call", name, "mcp_error" if is_error else "success", arguments)
        case "add":
            arguments = {"a": a_value(chance), "b": a_text(chance), a_text(chance): a_value(chance)}
            with contextlib.suppress(Exception):  # the SDKs differ in how they say that it takes no such thing
                await session.call("add", arguments, meta=meta)
            return an_event_of("mcp.tools.call", "add", "failed", arguments)
        case "unknown":
            is_large = len(claim) < 10_000 and chance.random() < 0.2
            text = large(chance, chance.choice(LARGEST)) if is_large else a_text(chance)
            arguments = {"password": text, "nested": a_value(chance)}
            with contextlib.suppress(Exception):
                await session.call(a_text(chance) + "?", arguments, meta=meta)
            return an_event_of("mcp.tools.call", "?", "failed", arguments)
        case "prompt":
            arguments = {"what": a_text(chance)}
            await session.prompt("explain", arguments)
            return an_event_of("mcp.prompts.get", "", "success", arguments)
    with contextlib.suppress(Exception):
        await session.read(f"https://user:{chance.choice(SECRETS)}@example.org/?token={chance.choice(SECRETS)}")
    return an_event_of("mcp.resources.read", "", "failed")


def test_hostile_calls_leave_one_well_formed_event_each_and_no_secret(service: Service) -> None:
    chance = random.Random(f"{SEED} {service.name}")

    async def work() -> list[dict[str, Any]]:
        async with asyncio.timeout(170 * (10 if LONG else 1)), service.connect() as session:
            return [await call(session, chance) for _ in range(CALLS)]

    expected = asyncio.run(work())

    events = service.events(CALLS)
    assert [as_expected(event) for event in events] == expected
    assert_well_formed(events, service)


def as_expected(event: dict[str, Any]) -> dict[str, Any]:
    tool, outcome = event["action"]["mcp_tool"], event["outcome"]
    return {
        "event_type": event["event_type"],
        "tool": tool if tool in ("", "repeat", "choke", "add") else "?",
        "outcome": "failed" if tool not in ("repeat", "choke") and outcome in ("mcp_error", "error") else outcome,
        "digest": event["action"].get("arguments_digest"),
    }


def a_raw_value(chance: random.Random, depth: int = 0) -> str:
    """What is JSON, and what is only nearly so."""
    match chance.randint(0, 5 if depth < 4 else 3):
        case 0 | 1:
            return f'"{chance.choice(RAW_PIECES)} {chance.choice([*SECRETS, ""])}"'
        case 2 | 3:
            return chance.choice(RAW_NUMBERS)
        case 4:
            return f"[{a_raw_value(chance, depth + 1)},{a_raw_value(chance, depth + 1)}]"
    key = chance.choice([*RAW_PIECES, *SECRETS])
    return f'{{"{key}":{a_raw_value(chance, depth + 1)},"{key}":{a_raw_value(chance, depth + 1)}}}'


def a_raw_call(chance: random.Random, number: int) -> bytes:
    value = a_raw_value(chance)
    method = chance.choice(("tools/call",) * 4 + ("resources/read", "prompts/get"))
    name = chance.choice(('"repeat"', '"repeat"', '"choke"', a_raw_value(chance)))
    arguments = chance.choice((f'{{"value":{value}}}',) * 4 + (value,))
    meta = chance.choice((f'{{"user":{a_raw_value(chance)}}}', '{"traceparent":"00-1"}', a_raw_value(chance)))
    params = f'{{"_meta":{meta},"name":{name},"uri":{name},"arguments":{arguments}}}'
    body = f'{{"jsonrpc":"2.0","id":{number},"method":"{method}","params":{params}}}'.encode()
    return body[: chance.randrange(len(body))] if chance.random() < 0.05 else body


def hostile_headers(chance: random.Random) -> dict[str, bytes]:
    names = ("User-Agent", "X-Request-Id", "X-Forwarded-For", "Traceparent", "Tracestate", "Baggage", "X-Other")
    return {chance.choice(names): large(chance, chance.randrange(LARGEST_HEADER)).strip().encode()}


@contextlib.contextmanager
def a_raw_session(service: Service) -> Iterator[Callable[..., int]]:
    """What sends a body and headers in a session, and gives the status of the answer."""
    headers = {
        "Authorization": f"Bearer {TOKEN}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
    }
    client_info = {"name": "tests", "version": "7"}
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client_info}
    with httpx.Client(headers=headers, timeout=60, follow_redirects=True, trust_env=False) as http:

        def post(body: bytes, headers: dict[str, bytes], query: str) -> int:
            return http.post(f"{service.url}?{query}", content=body, headers=headers).status_code  # type: ignore[arg-type]  # it takes bytes

        answer = http.post(service.url, json={"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
        http.headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
        assert post(b'{"jsonrpc":"2.0","method":"notifications/initialized"}', {}, "") == 202
        yield post


def test_hostile_bodies_leave_one_well_formed_event_each_where_they_are_requests_at_all(service: Service) -> None:
    chance = random.Random(f"{SEED} {service.name}")
    taken = []

    with a_raw_session(service) as post:
        for number in range(BODIES):
            query = quote(large(chance, chance.randrange(LARGEST_HEADER // 3))) if chance.random() < 0.1 else ""
            status = post(a_raw_call(chance, number), hostile_headers(chance), query)
            assert status in (200, 400, 500)  # the last: SDK 1.x, of what is nested too deep
            if status == 200:
                taken.append(str(number))

    assert len(taken) > BODIES // 8
    events = service.events(len(taken))
    assert [event["jsonrpc_id"] for event in events] == taken
    assert_well_formed(events, service)


def assert_well_formed(events: list[dict[str, Any]], service: Service) -> None:
    """And they are the last ones of a whole chain, and no secret is in it."""
    assert application_events(service.directory)[-len(events) :] == events
    assert len({event["event_id"] for event in events}) == len(events)
    for event in events:
        model = TypeAdapter(AuditEvent).validate_python(event, strict=False)
        assert model.principal.username == "alice"
        assert model.request_id
        assert model.jsonrpc_id
        assert model.duration_ms is not None
        assert model.duration_ms >= 0
        assert model.trace_id is None  # what was said of it is nonsense
    text = service.text()
    assert [secret for secret in SECRETS if secret in text] == []
    assert max(len(line.encode()) for line in text.split("\n")) < 64 * 1024
