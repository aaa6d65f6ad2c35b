"""Hostile calls: each is one well-formed event, and no secret is in any of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from conftest import Service

CALLS = 200
SEED = 20_261_125

# In pieces, so that no scanner of this repository takes them for real.
SECRETS = [
    "ghp_" + "1A2b3C4d5E6f7G8h9I0jK1l2M3n4O5p6Q7r8",
    "AKIA" + "Q3EGRWHT7VZXCPLD",
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLWFsaWNl",
]
PIECES = ["", "a", "\x00", "\n", "\u2028", "\x7f", '"', "\\", "{}", "ünï", "\U0001f600", "%00", "../", "x" * 9_000]


def a_text(chance: random.Random) -> str:
    pieces = [chance.choice(PIECES) for _ in range(chance.randint(0, 4))]
    return " ".join([*pieces, chance.choice([*SECRETS, ""])])


def some_arguments(chance: random.Random, depth: int = 0) -> Any:
    match chance.randint(0, 5 if depth < 6 else 3):
        case 0:
            return a_text(chance)
        case 1:
            return chance.choice([None, True, -1, 10**40, 1e308])
        case 2 | 3:
            return chance.random()
        case 4:
            return [some_arguments(chance, depth + 1) for _ in range(3)]
    return {a_text(chance): some_arguments(chance, depth + 1) for _ in range(3)}


def test_hostile_calls_leave_as_many_events_and_no_secret(service: Service) -> None:
    chance = random.Random(SEED)

    async def call(session: Any) -> None:
        name, claim = a_text(chance), a_text(chance)
        arguments = {"password": a_text(chance), "nested": some_arguments(chance)}
        if chance.random() < 0.3:
            uri = f"https://user:{chance.choice(SECRETS)}@example.org/?token={chance.choice(SECRETS)}"
            await session.read(uri)
        else:
            await session.call(name, arguments, meta={"user": claim, "traceparent": claim, claim: claim})

    async def work() -> None:
        async with asyncio.timeout(170), service.connect() as session:
            for _ in range(CALLS):
                with contextlib.suppress(Exception):  # what the server makes of it is not the question
                    await call(session)

    before = len(service.text())
    asyncio.run(work())

    events = service.events(CALLS)
    assert {event["outcome"] for event in events} <= {"mcp_error", "error"}
    assert {event["principal"]["username"] for event in events} == {"alice"}
    written = service.text()[before:]
    assert [secret for secret in SECRETS if secret in written] == []
