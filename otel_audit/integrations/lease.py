"""Share a logger between the servers and applications of one process: the last of them closes it.

Change a framework for an instrumentor, and undo the change.

Keep the instrumentors from applications and servers whose requests and calls somebody else records.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from otel_audit.configuration import configure
from otel_audit.logger import AuditLogger

__all__ = ["Instrumentation", "Lease", "is_kept_out", "keep_out", "logger_of_process"]


_lock = threading.Lock()
_leases: WeakKeyDictionary[AuditLogger, int] = WeakKeyDictionary()


class Lease:
    """The use of a logger, from now until `give_back`. Any thread."""

    def __init__(self, audit: AuditLogger) -> None:
        self._audit = audit
        self._is_held = True
        audit.start()
        with _lock:
            _leases[audit] = _leases.get(audit, 0) + 1

    async def give_back(self) -> None:
        """Give the logger back; the last of its users closes it, and it delivers within its setting `close_timeout_s`.

        In a thread, so that the event loop is free meanwhile. A second call does nothing.
        """
        if not self._is_last():
            return
        try:
            closing = asyncio.get_running_loop().run_in_executor(None, self._audit.close)
        except RuntimeError:  # its threads have ended, and the loop is about to
            self._audit.close()
        else:
            await asyncio.shield(closing)

    def give_back_now(self) -> None:
        """Give the logger back on the caller's thread, where there is no event loop to keep free."""
        if self._is_last():
            self._audit.close()

    def _is_last(self) -> bool:
        with _lock:
            if not self._is_held:
                return False
            self._is_held = False
            _leases[self._audit] -= 1
            return not _leases[self._audit]


_changes = threading.Lock()
_logger: AuditLogger | None = None


def logger_of_process() -> AuditLogger:
    """The one logger that all instrumentors of this process share, made from the environment when first asked for.

    Raises:
        ConfigError: a setting or the policy is wrong. Nothing was started; the next call tries again.
        JournalUnwritable: likewise, the directory cannot be written.
    """
    global _logger
    with _changes:
        if _logger is None:
            _logger = configure()
        return _logger


class Instrumentation:
    """The methods of a framework that were wrapped, until `undo`.

    What they have put into an application by then stays there, and asks `is_on` each time.
    """

    def __init__(self, audit: AuditLogger | None) -> None:
        self._given = audit
        self._undo: list[Callable[[], None]] = []
        self.is_on = True

    @property
    def audit(self) -> AuditLogger:
        """Return the logger that was given, else that of the process. Raises what `logger_of_process` does."""
        return self._given if self._given is not None else logger_of_process()

    def wrap(self, owner: type | ModuleType, name: str, wrapper: Callable[..., Any]) -> None:
        """Make `owner.name(...)` call `wrapper(original, ...)`; in a class with its instance, and in subclasses."""
        self.replace(owner, name, _wrapped(getattr(owner, name), wrapper))

    def replace(self, owner: type | ModuleType, name: str, replacement: Callable[..., Any]) -> None:
        """Put this function, with the parameters that it has, in the place of `owner.name`."""
        original = getattr(owner, name)
        inherited = name not in vars(owner)

        def undo() -> None:
            if vars(owner).get(name) is not replacement:
                return  # somebody wrapped it again: `is_on` makes ours harmless
            if inherited:
                delattr(owner, name)
            else:
                setattr(owner, name, original)

        setattr(owner, name, replacement)
        self._undo.append(undo)

    def when_imported(self, module: str, change: Callable[[ModuleType], None]) -> None:
        """Change the module once it is imported, now if it is already; never, if this was undone by then.

        An import here may come too early: other instrumentors put classes of their own into what it imports.
        """
        from wrapt import register_post_import_hook  # comes with opentelemetry-instrumentation

        def change_it(imported: ModuleType) -> None:
            if self.is_on:
                change(imported)

        register_post_import_hook(change_it, module)

    def undo(self) -> None:
        """Make the framework as it was; applications that are built already record nothing here any more."""
        self.is_on = False
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()


def _wrapped(original: Any, wrapper: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(original):  # so that it still is one for those who ask

        @functools.wraps(original)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            return await wrapper(original, *args, **kwargs)

        return asynchronous

    @functools.wraps(original)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    return synchronous


_kept_out: WeakSet[object] = WeakSet()


def keep_out(recorded: object) -> None:
    """Keep every instrumentor from recording this Starlette application, or this server of the MCP SDK 1.x.

    It is without effect on one that has begun to run.
    """
    _kept_out.add(recorded)


def is_kept_out(candidate: object) -> bool:
    """Return True if `keep_out` was called for it."""
    return candidate in _kept_out
