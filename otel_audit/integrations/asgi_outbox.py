"""What an ASGI application sends to a client, watched on its way."""

from __future__ import annotations

import asyncio
from typing import Final

from otel_audit.integrations.asgi_exchange import Exchange
from otel_audit.integrations.asgi_inbox import Inbox
from otel_audit.integrations.asgi_recording import Recording, SwiftRecording
from otel_audit.integrations.asgi_types import Message, Send

__all__ = ["Outbox"]

_ID_HEADER: Final = b"x-audit-id"
_BEGINNINGS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_TURNS: Final = 32  # of the event loop: each middleware that runs the application in a task of its own takes a few


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
                self._end_soon(_TURNS)
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
