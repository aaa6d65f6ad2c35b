"""Support for instrumentors and servers that share one process.

A `Lease` shares a logger between servers and applications, the last of which closes it. An `Instrumentation` changes a
framework and can undo the change. `keep_out` protects applications and servers that are recorded in another way.
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
    """A share in a logger, from now until `give_back`. Any thread."""

    def __init__(self, audit: AuditLogger) -> None:
        self._audit = audit
        self._is_held = True
        audit.start()
        with _lock:
            _leases[audit] = _leases.get(audit, 0) + 1

    async def give_back(self) -> None:
        """Give the logger back. The last user closes it, which delivers its events within `close_timeout_s`.

        A thread does this, so that the event loop stays free. A second call does nothing.
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
        """Give the logger back on the caller's thread, for callers without an event loop."""
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
    """Return the logger that all instrumentors of this process share, made from the environment on the first call.

    Raises:
        ConfigError: a setting or the policy is wrong. Nothing was started; the next call tries again.
        JournalUnwritable: the directory cannot be written. Nothing was started; the next call tries again.
    """
    global _logger
    with _changes:
        if _logger is None:
            _logger = configure()
        return _logger


class Instrumentation:
    """The methods of a framework that are wrapped until `undo`.

    Anything that they have put into an application stays there, and checks `is_on` each time.
    """

    def __init__(self, audit: AuditLogger | None) -> None:
        self._given = audit
        self._undo: list[Callable[[], None]] = []
        self.is_on = True

    @property
    def audit(self) -> AuditLogger:
        """The logger that was given, or that of the process. Raises as `logger_of_process` does."""
        return self._given if self._given is not None else logger_of_process()

    def wrap(self, owner: type | ModuleType, name: str, wrapper: Callable[..., Any]) -> None:
        """Make `owner.name(...)` call `wrapper(original, ...)`; in a class with its instance, and in subclasses."""
        self.replace(owner, name, _wrapped(getattr(owner, name), wrapper))

    def replace(self, owner: type | ModuleType, name: str, replacement: Callable[..., Any]) -> None:
        """Replace `owner.name` by this function, which keeps its own parameters."""
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
        """Change the module once it is imported, or now if it already is; but not if this was undone by then.

        Importing it here could be too early, since other instrumentors still replace classes that it imports.
        """
        from wrapt import register_post_import_hook  # comes with opentelemetry-instrumentation

        def change_it(imported: ModuleType) -> None:
            if self.is_on:
                change(imported)

        register_post_import_hook(change_it, module)

    def undo(self) -> None:
        """Restore the framework. Applications that are already built record nothing here any more."""
        self.is_on = False
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()


def _wrapped(original: Any, wrapper: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(original):  # the wrapper must be one too, since callers check

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

    This has no effect once the application or server has begun to run.
    """
    _kept_out.add(recorded)


def is_kept_out(candidate: object) -> bool:
    """Return True if `keep_out` was called for this application or server."""
    return candidate in _kept_out
