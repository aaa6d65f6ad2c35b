"""The event under way in the current task or thread. Code can fill it in, and other events name it as their parent.

A `Ruling` is the detailed decision of a permission check, for every framework.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otel_audit.event import AuditEvent

__all__ = ["Ruling", "current_event", "leave", "parent_id", "under_way", "within"]


under_way: ContextVar[tuple[str | None, Callable[[], AuditEvent] | None]] = ContextVar(
    "otel_audit_under_way", default=(None, None)
)


def parent_id() -> str | None:
    """Return the `event_id` of the innermost event under way in this task or thread, or None."""
    return under_way.get()[0]


def current_event() -> AuditEvent | None:
    """Return the event of the current request, connection or MCP call for you to fill in, or None outside of one.

    Set for instance `event.resource`, `event.reason`, `event.attributes`, or `event.outcome = "denied"` before you
    answer with an error. The event is the same in every task and thread of a request. Values set after the last byte of
    the response come too late.
    """
    event = under_way.get()[1]
    return None if event is None else event()


class within:  # in lower case, as it is used like a function; a generator would cost four times as much
    """Make events recorded inside this block belong to this event, or to none. Threads and tasks inherit that.

    `event` provides the event that `current_event` returns inside.
    """

    __slots__ = ("_token", "_under_way")

    def __init__(self, event_id: str | None, event: Callable[[], AuditEvent] | None = None) -> None:
        self._under_way = event_id, event

    def __enter__(self) -> None:
        self._token = under_way.set(self._under_way)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        leave(self._token)


def leave(*tokens: Token[Any]) -> None:
    """Reset the ContextVars that were set in the current context, and ignore the others."""
    for token in tokens:
        try:
            token.var.reset(token)
        except ValueError:  # set in another context: the garbage collector is ending a task that never finished
            continue


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision of a permission check with its reasons. It is true if it allows."""

    allowed: bool
    reason: str = ""
    policy_id: str = ""

    def __bool__(self) -> bool:
        return self.allowed
