"""What an ASGI application sends to a client, watched on its way."""

from __future__ import annotations

from typing import Final

from otel_audit.integrations.asgi_exchange import Exchange
from otel_audit.integrations.asgi_inbox import Inbox
from otel_audit.integrations.asgi_recording import Recording, SwiftRecording
from otel_audit.integrations.asgi_types import Message, Send

__all__ = ["Outbox"]

_ID_HEADER: Final = b"x-audit-id"
_BEGINNINGS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_SERVER_ERROR: Final = 500


class Outbox:
    """The `send` of one request or connection. `names_event`: the answer says the id of its event."""

    __slots__ = ("_exchange", "_inbox", "_names_event", "_recording", "_send")

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
            # What answers 500 for an exception lets it go on behind the answer: it belongs to the event.
            if (progress.status_code or 0) < _SERVER_ERROR:
                await self._recording.end(None)


def _with_id(message: Message, event_id: str) -> Message:
    return {**message, "headers": [*message.get("headers", ()), (_ID_HEADER, event_id.encode())]}
