"""The event that is under way is known where its work runs, and nowhere else."""

from __future__ import annotations

import asyncio

import pytest

from otel_audit.integrations.parent import parent_id, within


def test_the_innermost_event_is_the_parent_as_long_as_it_is_under_way() -> None:
    seen = [parent_id()]

    with within("outer"):
        seen.append(parent_id())
        with within("inner"):
            seen.append(parent_id())
        seen.append(parent_id())

    assert [*seen, parent_id()] == [None, "outer", "inner", "outer", None]


def test_an_event_that_fails_is_no_parent_afterwards() -> None:
    with pytest.raises(RuntimeError), within("failed"):
        raise RuntimeError

    assert parent_id() is None


def test_tasks_at_once_have_parents_of_their_own() -> None:
    async def call(event_id: str) -> tuple[str | None, str | None]:
        with within(event_id):
            await asyncio.sleep(0)
            return parent_id(), await asyncio.to_thread(parent_id)

    async def calls() -> list[tuple[str | None, str | None]]:
        return await asyncio.gather(*(call(str(number)) for number in range(20)))

    assert asyncio.run(calls()) == [(str(number), str(number)) for number in range(20)]
