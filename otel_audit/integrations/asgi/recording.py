"""Watch one exchange and record it: at most one event at its beginning, exactly one at its end.

A `Recording` provides the `receive` and `send` of the application. It reports each message to the exchange, and records
the end when the server has the last byte, or when the application ends without sending one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET
from opentelemetry.context import Context

from otel_audit.errors import described
from otel_audit.fast_line import given_or
from otel_audit.integrations.asgi.exchange import Exchange
from otel_audit.integrations.asgi.lifespan import UnderWay
from otel_audit.integrations.asgi.scope import Message, Receive, Scope, Send, route_of
from otel_audit.integrations.principals import Principals
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.operation import Operation
from otel_audit.policy.decisions import ROUTE_ATTRIBUTE
from otel_audit.recorder import Recorder

if TYPE_CHECKING:
    from otel_audit.event import AuditEvent, AuditPrincipal

__all__ = ["Recording", "Register", "WaitingRecording"]

_NO_SPAN: Final = Context()  # the exchange knows its span, or knows that there is none
_ID_HEADER: Final = b"x-audit-id"
_BEGINNINGS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
# Messages: the body that the application did not read, and the disconnect. Servers only repeat the latter.
_LOOKED_AT: Final = 2
# Turns of the event loop until a message has come through middleware that receives in a task of its own.
_TURNS_OF_AN_ANSWER: Final = 8
# Turns of the event loop: each middleware that runs the application in a task of its own takes a few.
_TURNS_OF_AN_END: Final = 32


class Register(msgspec.Struct, frozen=True):
    """State shared by all recordings of one middleware. If `names_event`, responses carry the id of their event."""

    audit: AuditLogger
    recorder: Recorder
    principals: Principals
    notices: Notices
    under_way: UnderWay
    names_event: bool


class Recording:
    """The recording of an exchange if events neither wait for the disk nor refuse requests.

    No model is built unless the application asks for the event. `is_over` means that the end is recorded, or about to
    be.
    """

    __slots__ = ("_ending", "_has_all", "_kept", "_receive", "_send", "_waiting", "exchange", "is_over", "register")

    def __init__(self, register: Register, exchange: Exchange, receive: Receive, send: Send) -> None:
        self.register = register
        self.exchange = exchange
        self.is_over = False
        self._receive = receive
        self._send = send
        self._kept: deque[Message] | None = None
        self._waiting = 0
        self._has_all = False

    async def begin(self) -> None:
        """Record the beginning, if an event has to be in the trail before the application is called."""

    def end(self, error: BaseException | None) -> Coroutine[Any, Any, None] | None:
        """Record the end, once. Return a coroutine to await if there is more to do; here nothing waits for the disk.

        A loss is reported and counted, since it is too late to refuse the request.
        """
        if not self.is_over:
            self.is_over = True
            try:
                self._record(None if error is None else _of_exchange(error, self.exchange))
            except Exception as failure:
                self._say_lost(failure)
            finally:
                self.register.under_way.recordings.discard(self)
        return None

    async def receive(self) -> Message:
        """Return the next message for the application, and record the end if the message ends the exchange."""
        exchange = self.exchange
        if exchange.span.trace_id is UNSET:
            exchange.look()
        if self._kept:
            return self._kept.popleft()
        self._waiting += 1
        try:
            message = await self._receive()
        finally:
            self._waiting -= 1
        if self._see(message) and (rest := self.end(None)) is not None:
            await rest
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the application to the server, and record the end after the last one."""
        exchange = self.exchange
        if exchange.span.trace_id is UNSET:
            exchange.look()
        if self.register.names_event and message["type"] in _BEGINNINGS:
            message = _with_id(message, exchange.event_id)
        if is_last := exchange.is_last(message):
            if exchange.takes_long and not exchange.is_gone:
                await self._look_for_the_end()
            exchange.is_ending = True
        try:
            await self._send(message)
        except OSError:  # Source: ASGI specification 2.4: the connection is closed
            exchange.is_gone = True
            raise
        exchange.sent(message)
        if is_last:
            if exchange.is_doubtful:
                self._end_soon(_TURNS_OF_AN_END)
            elif (rest := self.end(None)) is not None:
                await rest

    def _record(self, error: BaseException | None) -> None:
        exchange = self.exchange
        if exchange.event is not None:
            self._record_filled(exchange.event, error)
            return
        outcome = exchange.outcome(error)
        status_code, user_agent = exchange.status_code, exchange.user_agent
        self.register.recorder.log_call(
            exchange.event_type,
            request_id=exchange.request_id,
            principal=self._principal(),
            ip=exchange.ip,
            transport=exchange.transport,
            user_agent=UNSET if user_agent is None else user_agent,
            path=exchange.path,
            method=exchange.method,
            outcome=str(outcome),  # `value` of a member takes as long as an id
            duration_ms=exchange.duration_ms,
            detail=exchange.detail(outcome),
            event_id=exchange.event_id,
            span=exchange.span,
            status_code=UNSET if status_code is None else status_code,
            error_type=UNSET if error is None else type(error).__qualname__,
            parent_id=exchange.parent_id or UNSET,
            attributes=_attributes_of(exchange) or UNSET,
        )

    def _record_filled(self, event: AuditEvent, error: BaseException | None) -> None:
        self._fill(event, error)
        event.duration_ms = self.exchange.duration_ms
        if error is not None:
            event.error_type = given_or(event.error_type, type(error).__qualname__)
        self.register.audit.log(event, context=_NO_SPAN)

    def _fill(self, event: AuditEvent, error: BaseException | None) -> None:
        """Add the facts known at the end, but keep the values that the application has filled in."""
        from otel_audit.event import AuditPrincipal

        exchange = self.exchange
        outcome = exchange.outcome(error)
        if exchange.told is not None or event.principal == AuditPrincipal():
            event.principal = self._principal() or event.principal
        else:
            self.register.principals.note(exchange.scope, event.principal, exchange.status_code)
        event.outcome = given_or(event.outcome, str(outcome))
        event.status_code = exchange.status_code
        event.detail = given_or(event.detail, exchange.detail(outcome))
        given = event.attributes
        if given is None or isinstance(given, dict):  # else the recorder makes something of it
            event.attributes = {**exchange.facts, **_attributes_of(exchange), **(given or {})} or None
        _set_span(event, exchange)

    def _principal(self) -> AuditPrincipal | None:
        exchange, principals = self.exchange, self.register.principals
        principal = exchange.told or principals.of(exchange.scope, exchange.found)
        if principal is None and exchange.status_code != 401:  # 401: the application has refused whom the client claims
            principal = exchange.claimed
        if not principals.is_settled:
            principals.note(exchange.scope, principal, exchange.status_code)
        return principal

    def _say_lost(self, failure: Exception) -> None:
        self.register.notices.say("request", f"the end of a request could not be recorded: {described(failure)}")

    def _see(self, message: Message) -> bool:
        self._has_all = self._has_all or message["type"] != "http.request" or not message.get("more_body", False)
        return self.exchange.received(message)

    def _end_soon(self, turns: int) -> None:
        """Record the end after this many turns of the event loop, if the application has not ended by then.

        By then, an exception for which the last message was sent has arrived. Without this limit, a background task
        could delay the event for long.
        """
        loop = asyncio._get_running_loop()
        if loop is None or self.is_over:
            return
        if turns:
            loop.call_soon(self._end_soon, turns - 1)
        elif (rest := self.end(None)) is not None:
            self._ending = loop.create_task(rest)

    async def _look_for_the_end(self) -> None:
        """Find out whether the client has disconnected, if the application does not check.

        Servers report a disconnect only to a caller of `receive`, and silently accept messages for a client that is
        gone. Other messages received here are kept for the application. This does nothing while the application itself
        is waiting, nor before it has the body.
        """
        scope = self.exchange.scope
        if scope["type"] != "http" or self._waiting or self._kept or asyncio._get_running_loop() is None:
            return
        if not self._has_all and _has_body(scope):
            return
        self._kept = deque()
        for _ in range(_LOOKED_AT):
            if (message := await self._at_once()) is None:
                return
            self._see(message)
            self._kept.append(message)
            if message["type"] != "http.request" or not self._has_all:
                return

    async def _at_once(self) -> Message | None:
        """Return the next message if it is there already."""
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


class WaitingRecording(Recording):
    """The recording of an exchange as an operation, which can wait for the disk and refuse the request."""

    __slots__ = ("_operation",)

    def __init__(self, register: Register, exchange: Exchange, receive: Receive, send: Send) -> None:
        super().__init__(register, exchange, receive, send)
        self._operation = Operation(register.recorder, exchange.begun_event(), context=_NO_SPAN)

    async def begin(self) -> None:
        """Return once the beginning is in the trail, if the loss rule is `closed`.

        Raises:
            AuditUnavailable: it is not in the trail, and the exchange must not take place.
            CancelledError: it may be in the trail. An event that says that the exchange did not take place is there.
        """
        event, exchange = self._operation.event, self.exchange
        event.attributes = {**exchange.claims} or None
        _set_span(event, exchange)
        try:
            await self._operation.__aenter__()
        except asyncio.CancelledError as error:
            await self._end_before_it_began(error)
            raise
        event.attributes = None  # now the application's own; a claimed id may turn out to be the known one by the end
        begun = self._operation.begun
        if begun is not None and begun.event_id is not None:
            exchange.own_id = begun.event_id

    def end(self, error: BaseException | None) -> Coroutine[Any, Any, None] | None:
        """Record the end like `Recording.end`. The returned coroutine waits for the disk."""
        if self.is_over:
            return None
        self.is_over = True
        return self._wait_for_end(error)

    async def _wait_for_end(self, error: BaseException | None) -> None:
        try:
            error = None if error is None else _of_exchange(error, self.exchange)
            self._fill(self._operation.event, error)
            await self._operation.__aexit__(None if error is None else type(error), error, None)
        except Exception as failure:
            self._say_lost(failure)
        finally:
            self.register.under_way.recordings.discard(self)

    async def _end_before_it_began(self, error: asyncio.CancelledError) -> None:
        self.is_over = True
        event = self._operation.event
        try:
            self._fill(event, error)
            event.error_type, event.duration_ms = type(error).__qualname__, self.exchange.duration_ms
            await self.register.audit.alog(event, context=_NO_SPAN)
        except Exception as failure:
            self._say_lost(failure)
        finally:
            self.register.under_way.recordings.discard(self)


def _attributes_of(exchange: Exchange) -> dict[str, str]:
    route, claims = route_of(exchange.scope), exchange.claims
    return {ROUTE_ATTRIBUTE: route, **claims} if route else claims


def _set_span(event: AuditEvent, exchange: Exchange) -> None:
    span = exchange.span
    if span.trace_id is not UNSET and span.span_id is not UNSET and span.flags is not UNSET:
        event.trace_id, event.span_id, event.trace_flags = span.trace_id, span.span_id, span.flags


def _of_exchange(error: BaseException, exchange: Exchange) -> BaseException | None:
    """Return the error, unless a background task of Starlette or FastAPI raised it after the last byte."""
    if not exchange.is_doubtful:
        return error
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_globals.get("__name__") == "starlette.background":
            return None
        at = at.tb_next
    return error


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _with_id(message: Message, event_id: str) -> Message:
    return {**message, "headers": [*message.get("headers", ()), (_ID_HEADER, event_id.encode())]}
