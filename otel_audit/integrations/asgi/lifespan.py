"""The lifespan of an ASGI application, which holds its audit logger and closes it if no one else uses it.

Before closing, it waits for the requests and connections that are still under way.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from otel_audit.integrations.asgi.scope import ASGIApp, Message, Receive, Scope, Send
from otel_audit.integrations.lease import Lease
from otel_audit.logger import AuditLogger

__all__ = ["Lifespan", "UnderWay", "is_held"]


_POLL_S: Final = 0.005
_WAIT_S: Final = 5.0  # enough for the disk; requests that were told to end have ended by then


class UnderWay:
    """The recordings of one application whose end is not in the trail yet. Any thread."""

    __slots__ = ("recordings",)

    def __init__(self) -> None:
        self.recordings: set[object] = set()

    async def over(self) -> None:
        """Return when all of them have ended, or after some seconds.

        A server whose patience has run out cancels the requests under way and shuts the application down at the same
        time. A logger that closed at once would miss the ends of those requests.
        """
        if asyncio._get_running_loop() is None:
            return
        deadline = time.monotonic() + _WAIT_S
        while self.recordings and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)


_KEY: Final = "otel_audit.lifespan"

# After these the server may end the process at once, so the logger is closed before they are passed on.
_LAST: Final = frozenset({"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"})


def is_held(scope: Scope) -> bool:
    """Return True if an outer middleware already holds a logger for this lifespan."""
    return _KEY in scope


class Lifespan:
    """One run of an application, from its startup to its shutdown or to the failure of either."""

    def __init__(self, app: ASGIApp, audit: AuditLogger, under_way: UnderWay, receive: Receive, send: Send) -> None:
        self._app = app
        self._under_way = under_way
        self._receive = receive
        self._send = send
        self._lease = Lease(audit)
        self._is_asked = False
        self._has_started = False
        self._is_ending = False
        self._has_given_back = False

    async def run(self, scope: Scope) -> None:
        """Run the application's lifespan, and give the logger back at its end.

        An application without a lifespan, which refuses the scope or returns from it, gets one here. If it returns
        after its startup, the rest of the lifespan is provided here. Otherwise nothing would close its logger, since
        servers run no exit handlers after SIGTERM. If the lifespan raises before it is told to end, the logger stays
        open, since servers may still serve the application.
        """
        scope[_KEY] = True
        try:
            await self._app(scope, self._watched_receive, self._watched_send)
        except Exception:
            if self._is_ending:
                await self._give_back()
            if self._is_asked or self._has_started:
                raise
        except BaseException:
            await self._lease.give_back()
            raise
        if self._is_ending:
            await self._give_back()
        else:
            await self._stand_in()

    async def _give_back(self) -> None:
        if not self._has_given_back:
            self._has_given_back = True
            await self._under_way.over()
            await self._lease.give_back()

    async def _watched_receive(self) -> Message:
        self._is_asked = True
        message = await self._receive()
        self._is_ending = message["type"] == "lifespan.shutdown"
        return message

    async def _watched_send(self, message: Message) -> None:
        self._has_started = True
        if message["type"] in _LAST:
            self._is_ending = True
            await self._give_back()
        await self._send(message)

    async def _stand_in(self) -> None:
        try:
            if not self._is_asked:
                await self._receive()
            if not self._has_started:
                await self._send({"type": "lifespan.startup.complete"})
            await self._receive()
        finally:
            await self._give_back()
        await self._send({"type": "lifespan.shutdown.complete"})
