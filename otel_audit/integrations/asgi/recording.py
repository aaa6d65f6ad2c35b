"""What is written of one exchange: at most one event at its begin, exactly one at its end."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec import UNSET
from opentelemetry.context import Context

from otel_audit.errors import described
from otel_audit.event import AuditEvent, AuditPrincipal
from otel_audit.fast_line import given_or
from otel_audit.integrations.asgi.exchange import HTTP_REQUEST, Exchange, route_of
from otel_audit.integrations.asgi.lifespan import UnderWay
from otel_audit.integrations.principals import Principals
from otel_audit.logger import AuditLogger
from otel_audit.notices import Notices
from otel_audit.operation import Operation
from otel_audit.policy.decisions import ROUTE_ATTRIBUTE

__all__ = ["Recording", "SwiftRecording"]

_NOBODY: Final = AuditPrincipal()
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
        self._operation = Operation(audit.recorder, exchange.begun_event(), context=_NO_SPAN)

    async def begin(self) -> None:
        """Where the loss rule is `closed`, the begin is in the trail.

        Raises:
            AuditUnavailable: it is not; the exchange must not take place.
            CancelledError: it may be; that the exchange has not taken place is.
        """
        event, exchange = self._operation.event, self._exchange
        event.attributes = {**exchange.claims} or None
        _set_span(event, exchange)
        try:
            await self._operation.__aenter__()
        except asyncio.CancelledError as error:
            await self._end_before_it_began(error)
            raise
        event.attributes = None  # from here on the application's own; of the claims, one may be known at the end
        begun = self._operation.begun
        if begun is not None and begun.event_id is not None:
            exchange.own_id = begun.event_id

    async def end(self, error: BaseException | None) -> None:
        """The end is recorded, once. What cannot be recorded is said and counted: there is nothing left to refuse."""
        if self.is_over:
            return
        self.is_over = True
        error = _of_exchange(error, self._exchange)
        try:
            _fill(self._operation.event, self._exchange, self._principals, error)
            await self._operation.__aexit__(None if error is None else type(error), error, None)
        except Exception as failure:
            _say_lost(self._notices, failure)
        finally:
            self._under_way.ends(self)

    async def _end_before_it_began(self, error: asyncio.CancelledError) -> None:
        self.is_over = True
        event = self._operation.event
        try:
            _fill(event, self._exchange, self._principals, error)
            event.error_type, event.duration_ms = type(error).__qualname__, self._exchange.duration_ms
            await self._audit.alog(event, context=_NO_SPAN)
        except Exception as failure:
            _say_lost(self._notices, failure)
        finally:
            self._under_way.ends(self)


class SwiftRecording:
    """The record of an HTTP request where no event waits for the disk and none can refuse.

    No model is built unless the application asked for its event.

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
        if exchange.event is not None:
            self._record_filled(exchange.event, error)
            return
        outcome = exchange.progress.outcome(error)
        status_code = exchange.progress.status_code
        self._audit.recorder.log_call(
            HTTP_REQUEST,
            request_id=exchange.request_id,
            principal=_principal(exchange, self._principals),
            ip=exchange.ip,
            transport="http",
            user_agent=UNSET if exchange.user_agent is None else exchange.user_agent,
            path=exchange.path,
            method=exchange.method,
            outcome=outcome.value,
            duration_ms=exchange.duration_ms,
            detail=exchange.detail(outcome),
            event_id=exchange.event_id,
            span=exchange.span.ids,
            status_code=UNSET if status_code is None else status_code,
            error_type=UNSET if error is None else type(error).__qualname__,
            parent_id=exchange.parent_id or UNSET,
            attributes=_attributes_of(exchange) or UNSET,
        )

    def _record_filled(self, event: AuditEvent, error: BaseException | None) -> None:
        _fill(event, self._exchange, self._principals, error)
        event.duration_ms = self._exchange.duration_ms
        if error is not None:
            event.error_type = given_or(event.error_type, type(error).__qualname__)
        self._audit.log(event, context=_NO_SPAN)


def _attributes_of(exchange: Exchange) -> dict[str, str]:
    route, claims = route_of(exchange.scope), exchange.claims
    return {ROUTE_ATTRIBUTE: route, **claims} if route else claims


def _fill(event: AuditEvent, exchange: Exchange, principals: Principals, error: BaseException | None) -> None:
    """Add what is known at the end. What the application has filled in stays."""
    outcome = exchange.progress.outcome(error)
    if exchange.told is not None or event.principal == _NOBODY:
        event.principal = _principal(exchange, principals) or event.principal
    else:
        principals.note(exchange.scope, event.principal, exchange.progress.status_code)
    event.outcome = given_or(event.outcome, outcome.value)
    event.status_code = exchange.progress.status_code
    event.detail = given_or(event.detail, exchange.detail(outcome))
    given = event.attributes
    if given is None or isinstance(given, dict):  # else the recorder makes something of it
        event.attributes = {**exchange.progress.facts, **_attributes_of(exchange), **(given or {})} or None
    _set_span(event, exchange)


def _set_span(event: AuditEvent, exchange: Exchange) -> None:
    span = exchange.span.ids
    if span.trace_id is not UNSET and span.span_id is not UNSET and span.flags is not UNSET:
        event.trace_id, event.span_id, event.trace_flags = span.trace_id, span.span_id, span.flags


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
