"""How the tests of what is required run it, and find what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from otel_audit.operation import Operation
from otel_audit.policy import Policy, read_policy
from tests.chain_check import application_events

__all__ = ["CLOSED", "Overdrawn", "a_policy", "both", "events", "fail", "run"]

CLOSED = "rules: [{type: table.*, on_loss: closed}]"


class Overdrawn(Exception):
    """A failure of the application."""


def a_policy(directory: Path, text: str) -> Policy:
    """A policy with these rules."""
    path = directory / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)


def events(tmp_path: Path) -> list[dict[str, Any]]:
    """What the application recorded in `journal`."""
    return application_events(tmp_path / "journal")


def run(running: Operation, inside: Callable[[], object] = lambda: None, *, is_async: bool) -> None:
    """The block, in a plain `with` or in an `async with` on a loop of its own."""

    async def main() -> None:
        async with running:
            inside()

    if is_async:
        asyncio.run(main())
        return
    with running:
        inside()


def fail() -> None:
    """The block of an operation that fails."""
    raise Overdrawn("account 42 of ann")


both = pytest.mark.parametrize("is_async", [False, True], ids=["with", "async with"])
