"""What a client sends to an ASGI application, watched on its way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from otel_audit.integrations.asgi_exchange import Exchange
from otel_audit.integrations.asgi_types import Message, Receive, Scope

__all__ = ["Inbox"]

_LOOKED_AT: Final = (
    2  # messages: the body that nobody asked for, and the end; a server that repeats itself says no more
)
_TURNS: Final = 8  # of the event loop, until an answer has come through middleware that asks in a task of its own


class Inbox:
    """The `receive` of one request or connection. `end` is awaited when a message of the client ends it."""

    __slots__ = ("_end", "_has_all", "_kept", "_progress", "_receive", "_span", "_waiting")

    def __init__(self, receive: Receive, exchange: Exchange, end: Callable[[None], Awaitable[None]]) -> None:
        self._receive = receive
        self._progress = exchange.progress
        self._span = exchange.span
        self._end = end
        self._kept: deque[Message] = deque()
        self._waiting = 0
        self._has_all = False

    async def __call__(self) -> Message:
        """The next message, for the application."""
        self._span.look()
        if self._kept:
            return self._kept.popleft()
        self._waiting += 1
        try:
            message = await self._receive()
        finally:
            self._waiting -= 1
        if self._see(message):
            await self._end(None)
        return message

    async def look(self, scope: Scope) -> None:
        """Learn whether the client has gone, where the application did not ask.

        A server says it to who receives, and takes without a word what is sent to nobody. What is received here besides
        is kept for the application. Does nothing while the application waits itself, nor before it has the body.
        """
        if scope["type"] != "http" or self._waiting or self._kept or asyncio._get_running_loop() is None:
            return
        if not self._has_all and _has_body(scope):
            return
        for _ in range(_LOOKED_AT):
            if (message := await self._at_once()) is None:
                return
            self._see(message)
            self._kept.append(message)
            if message["type"] != "http.request" or not self._has_all:
                return

    async def _at_once(self) -> Message | None:
        """The next message if it is there already."""
        asked = asyncio.ensure_future(self._receive())
        try:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
                if asked.done():
                    break
        finally:
            if not asked.done():
                asked.cancel()
        if not asked.done():
            await asyncio.wait((asked,))
        return None if asked.cancelled() or asked.exception() is not None else asked.result()

    def _see(self, message: Message) -> bool:
        self._has_all = self._has_all or message["type"] != "http.request" or not message.get("more_body", False)
        return self._progress.received(message)


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
