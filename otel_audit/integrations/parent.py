"""The event under way where code runs: code fills it in, and other events name it as their parent.

A `Ruling` is what a permission check of an application decides about it, whatever framework asks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from otel_audit.event import AuditEvent

__all__ = ["Ruling", "current_event", "leave", "parent_id", "under_way", "within"]


under_way: ContextVar[tuple[str | None, Callable[[], AuditEvent] | None]] = ContextVar(
    "otel_audit_under_way", default=(None, None)
)


def parent_id() -> str | None:
    """Return the `event_id` of the innermost event under way in this task or thread; None where there is none."""
    return under_way.get()[0]


def current_event() -> AuditEvent | None:
    """Return the event of the request, connection or MCP call that runs here, to be filled in; None outside of one.

    For instance `event.resource`, `event.reason`, `event.attributes`, or `event.outcome = "denied"` before an error is
    answered. It is the same in every task and thread of a request. What is filled in after the last byte of the answer
    comes too late.
    """
    event = under_way.get()[1]
    return None if event is None else event()


class within:  # in lower case, as it is used like a function; a generator would cost four times as much
    """Make what is recorded inside belong to this event, or to none. Threads and tasks begun inside inherit it.

    `event` gives what `current_event` returns inside.
    """

    __slots__ = ("_token", "_under_way")

    def __init__(self, event_id: str | None, event: Callable[[], AuditEvent] | None = None) -> None:
        self._under_way = event_id, event

    def __enter__(self) -> None:
        self._token = under_way.set(self._under_way)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        leave(self._token)


def leave(*tokens: Token[Any]) -> None:
    """Reset ContextVars, as far as this is the context in which they were set."""
    for token in tokens:
        try:
            token.var.reset(token)
        except ValueError:  # where the collector throws away a task that never ended: not set there
            continue


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision of a permission check that says more than yes or no. True when it allows."""

    allowed: bool
    reason: str = ""
    policy_id: str = ""

    def __bool__(self) -> bool:
        return self.allowed
