"""What a client sends to an ASGI application, watched on its way.

What an ASGI application sends to a client, watched on its way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from otel_audit.integrations.asgi.exchange import Exchange
from otel_audit.integrations.asgi.recording import Recording, SwiftRecording
from otel_audit.integrations.asgi.types import Message, Receive, Scope, Send

__all__ = ["Inbox", "Outbox"]


_LOOKED_AT: Final = (
    2  # messages: the body that nobody asked for, and the end; a server that repeats itself says no more
)
_TURNS_OF_AN_ANSWER: Final = (
    8  # of the event loop, until an answer has come through middleware that asks in a task of its own
)


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
            for _ in range(_TURNS_OF_AN_ANSWER):
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


_ID_HEADER: Final = b"x-audit-id"
_BEGINNINGS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_TURNS_OF_AN_END: Final = (
    32  # of the event loop: each middleware that runs the application in a task of its own takes a few
)


class Outbox:
    """The `send` of one request or connection. `names_event`: the answer says the id of its event."""

    __slots__ = ("_ending", "_exchange", "_inbox", "_names_event", "_recording", "_send")

    def __init__(
        self, send: Send, exchange: Exchange, inbox: Inbox, recording: Recording | SwiftRecording, *, names_event: bool
    ) -> None:
        self._send = send
        self._exchange = exchange
        self._inbox = inbox
        self._recording = recording
        self._names_event = names_event

    async def __call__(self, message: Message) -> None:
        """The server has the message. After the last one the end is recorded."""
        exchange = self._exchange
        progress = exchange.progress
        exchange.span.look()
        if self._names_event and message["type"] in _BEGINNINGS:
            message = _with_id(message, exchange.event_id)
        if is_last := progress.is_last(message):
            if exchange.takes_long and not progress.is_gone:
                await self._inbox.look(exchange.scope)
            progress.is_ending = True
        try:
            await self._send(message)
        except OSError:  # Source: ASGI specification 2.4: the connection is closed
            progress.is_gone = True
            raise
        progress.sent(message)
        if is_last:
            exchange.is_over()
            if progress.is_doubtful:
                self._end_soon(_TURNS_OF_AN_END)
            else:
                await self._recording.end(None)

    def _end_soon(self, turns: int) -> None:
        """The end is recorded, after so many turns of the event loop if the application has not ended by then.

        By then an exception has come through that the last message was sent for. A background task may take long.
        """
        loop = asyncio._get_running_loop()
        if loop is None or self._recording.is_over:
            return
        if turns:
            loop.call_soon(self._end_soon, turns - 1)
        else:
            self._ending = loop.create_task(self._recording.end(None))


def _with_id(message: Message, event_id: str) -> Message:
    return {**message, "headers": [*message.get("headers", ()), (_ID_HEADER, event_id.encode())]}
