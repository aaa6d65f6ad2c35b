"""The event that is under way where code runs, so that what is recorded inside it can name it as its parent."""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType

__all__ = ["parent_id", "within"]

_parent_id: ContextVar[str | None] = ContextVar("otel_audit_parent_id", default=None)


def parent_id() -> str | None:
    """The `event_id` of the innermost event under way in this task or thread; None where there is none."""
    return _parent_id.get()


class within:  # in lower case, as it is used like a function; a generator would cost four times as much
    """What is recorded inside belongs to this event; None: to no event. Threads and tasks begun inside inherit it."""

    __slots__ = ("_event_id", "_token")

    def __init__(self, event_id: str | None) -> None:
        self._event_id = event_id

    def __enter__(self) -> None:
        self._token = _parent_id.set(self._event_id)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            _parent_id.reset(self._token)
        except ValueError:  # in another context, where the collector throws away a task that never ended: not set there
            return
