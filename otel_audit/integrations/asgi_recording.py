"""What is written of one exchange: at most one event at its begin, exactly one at its end."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec import UNSET
from opentelemetry.context import Context

from otel_audit.draft import Action, Source
from otel_audit.draft import Exchange as ExchangeFacts
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditSource
from otel_audit.failures import described
from otel_audit.integrations.asgi_exchange import HTTP_REQUEST, Exchange
from otel_audit.integrations.asgi_route import route_of
from otel_audit.integrations.asgi_under_way import UnderWay
from otel_audit.integrations.principals import Principals
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.operation import Operation
from otel_audit.policy.facts import ROUTE_ATTRIBUTE

__all__ = ["Recording", "SwiftRecording"]

_NO_SPAN: Final = Context()  # the exchange knows its span, or knows that there is none


class Recording:
    """The record of an exchange, as an operation: it waits for the disk where an event has to, and may refuse.

    `is_over`: its end is recorded, or about to be.
    """

    __slots__ = ("_audit", "_exchange", "_notices", "_operation", "_principals", "_under_way", "is_over")

    def __init__(
        self, audit: AuditLogger, exchange: Exchange, principals: Principals, notices: Notices, under_way: UnderWay
    ) -> None:
        self._audit = audit
        self._exchange = exchange
        self._principals = principals
        self._notices = notices
        self._under_way = under_way
        self.is_over = False
        event = AuditEvent(
            event_type=exchange.event_type,
            request_id=exchange.request_id,
            parent_id=exchange.parent_id,
            source=AuditSource(ip=exchange.ip, transport=exchange.transport, user_agent=exchange.user_agent),
            action=AuditAction(path=exchange.path, method=exchange.method),
        )
        self._operation = Operation(audit.recorder, event, context=_NO_SPAN)

    async def begin(self) -> None:
        """Where the loss rule is `closed`, the begin is in the trail.

        Raises:
            AuditUnavailable: it is not; the exchange must not take place.
            CancelledError: it may be; that the exchange has not taken place is.
        """
        event = self._operation.event
        event.attributes = {**self._exchange.claims} or None
        self._set_span()
        try:
            await self._operation.__aenter__()
        except asyncio.CancelledError as error:
            await self._end_before_it_began(error)
            raise
        begun = self._operation.begun
        if begun is not None and begun.event_id is not None:
            self._exchange.own_id = begun.event_id

    async def end(self, error: BaseException | None) -> None:
        """The end is recorded, once. What cannot be recorded is said and counted: there is nothing left to refuse."""
        if self.is_over:
            return
        self.is_over = True
        error = _of_exchange(error, self._exchange)
        try:
            self._fill(error)
            await self._operation.__aexit__(None if error is None else type(error), error, None)
        except Exception as failure:
            _say_lost(self._notices, failure)
        finally:
            self._under_way.ends(self)

    async def _end_before_it_began(self, error: asyncio.CancelledError) -> None:
        self.is_over = True
        event = self._operation.event
        try:
            self._fill(error)
            event.error_type, event.duration_ms = type(error).__qualname__, self._exchange.duration_ms
            await self._audit.alog(event, context=_NO_SPAN)
        except Exception as failure:
            _say_lost(self._notices, failure)
        finally:
            self._under_way.ends(self)

    def _fill(self, error: BaseException | None) -> None:
        exchange, event = self._exchange, self._operation.event
        outcome = exchange.progress.outcome(error)
        event.event_id = exchange.event_id
        event.principal = _principal(exchange, self._principals) or event.principal
        event.outcome = outcome.value
        event.status_code = exchange.progress.status_code
        event.detail = exchange.detail(outcome)
        event.attributes = {**exchange.progress.facts, **_attributes_of(exchange)} or None
        self._set_span()

    def _set_span(self) -> None:
        event, span = self._operation.event, self._exchange.span.ids
        if span.trace_id is not UNSET and span.span_id is not UNSET and span.flags is not UNSET:
            event.trace_id, event.span_id, event.trace_flags = span.trace_id, span.span_id, span.flags


class SwiftRecording:
    """The record of an HTTP request where no event waits for the disk and none can refuse: no model is built.

    `is_over`: see `Recording`.
    """

    __slots__ = ("_audit", "_exchange", "_notices", "_principals", "_under_way", "is_over")

    def __init__(
        self, audit: AuditLogger, exchange: Exchange, principals: Principals, notices: Notices, under_way: UnderWay
    ) -> None:
        self._audit = audit
        self._exchange = exchange
        self._principals = principals
        self._notices = notices
        self._under_way = under_way
        self.is_over = False

    async def begin(self) -> None:
        """See `Recording`: nothing is recorded."""

    async def end(self, error: BaseException | None) -> None:
        """See `Recording`."""
        if self.is_over:
            return
        self.is_over = True
        try:
            self._record(_of_exchange(error, self._exchange))
        except Exception as failure:
            _say_lost(self._notices, failure)
        finally:
            self._under_way.ends(self)

    def _record(self, error: BaseException | None) -> None:
        exchange = self._exchange
        outcome = exchange.progress.outcome(error)
        status_code = exchange.progress.status_code
        self._audit.recorder.log_call(
            HTTP_REQUEST,
            exchange.request_id,
            None,
            None,
            _principal(exchange, self._principals),
            None,
            Source(exchange.ip, "http", UNSET if exchange.user_agent is None else exchange.user_agent),
            Action("", exchange.path, exchange.method),
            None,
            outcome.value,
            exchange.duration_ms,
            exchange.detail(outcome),
            ExchangeFacts(
                exchange.event_id,
                exchange.span.ids,
                UNSET if status_code is None else status_code,
                UNSET if error is None else type(error).__qualname__,
                exchange.parent_id or UNSET,
                _attributes_of(exchange) or UNSET,
            ),
        )


def _attributes_of(exchange: Exchange) -> dict[str, str]:
    route, claims = route_of(exchange.scope), exchange.claims
    return {ROUTE_ATTRIBUTE: route, **claims} if route else claims


def _principal(exchange: Exchange, principals: Principals) -> AuditPrincipal | None:
    status_code = exchange.progress.status_code
    principal = exchange.told or principals.of(exchange.scope, exchange.found)
    if principal is None and status_code != 401:  # with 401 the application itself has refused whom the client claims
        principal = exchange.claimed
    principals.note(exchange.scope, principal, status_code)
    return principal


def _of_exchange(error: BaseException | None, exchange: Exchange) -> BaseException | None:
    """The error, unless a background task of Starlette or FastAPI raised it, behind the last byte."""
    if error is None or not exchange.progress.is_doubtful:
        return error
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_globals.get("__name__") == "starlette.background":
            return None
        at = at.tb_next
    return error


def _say_lost(notices: Notices, failure: Exception) -> None:
    notices.say("request", f"the end of a request could not be recorded: {described(failure)}")
