"""Who uses a logger: several servers or applications in one process may share it, and the last one closes it."""

from __future__ import annotations

import asyncio
import threading
from weakref import WeakKeyDictionary

from otel_audit.logger import AuditLogger

__all__ = ["Lease"]

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
        """It is over; the last one has closed the logger, which delivers within its setting `close_timeout_s`.

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
        """`give_back` on the caller's thread, for those that have no event loop to keep free."""
        if self._is_last():
            self._audit.close()

    def _is_last(self) -> bool:
        with _lock:
            if not self._is_held:
                return False
            self._is_held = False
            _leases[self._audit] -= 1
            return not _leases[self._audit]
