"""The audit logger: the methods with which an application records events, whatever sink is behind it."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from opentelemetry.context import Context

from otel_audit import fast_line, ids
from otel_audit.delivery.processor import FlushReport
from otel_audit.journal.journal import Receipt
from otel_audit.loss import GuardedSink
from otel_audit.notices import Notices
from otel_audit.operation import Operation, audited, operation
from otel_audit.policy import Decisions, Policy
from otel_audit.recorder import ModelLike, Recorder
from otel_audit.redaction.redactor import Redactor
from otel_audit.settings import OnLoss, Settings
from otel_audit.sinks import AuditSink
from otel_audit.trail import Stats, Trail

if TYPE_CHECKING:
    from otel_audit.event import AuditAction, AuditPrincipal, AuditResource, AuditSource

__all__ = ["AuditLogger", "mcp_audit_request_id"]

# Lets the MCP wrapper and the REST request inside a tool call share one request id. Source: Feast 0.67.
mcp_audit_request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("mcp_audit_request_id", default=None)

P = ParamSpec("P")
R = TypeVar("R")

_SINK_TIMEOUT_S = 5.0


class AuditLogger:
    """Record audit events, from any thread and after a fork. Only with the loss rule `closed` can a failure raise.

    As a context manager, the logger closes at the end of the block.

    `policy` decides which events are recorded, how much of each, and what happens if recording fails. Events that no
    rule covers are recorded in full, under `on_loss`. With `log_successful_reads=False`, successful reads as Feast
    defines them are left out, whatever the policy says. `clock` returns nanoseconds since 1970.
    """

    def __init__(
        self,
        sink: AuditSink,
        *,
        log_successful_reads: bool = True,
        policy: Policy | None = None,
        redactor: Redactor | None = None,
        on_loss: OnLoss = OnLoss.OPEN,
        notices: Notices | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        # Not with the first event that needs a model: a child that is forked while another thread imports it would wait
        # for the lock of that import for ever, and a request would wait for Pydantic.
        import_module("otel_audit.event")
        self._sink = sink
        self._trail = sink if isinstance(sink, Trail) else None
        if self._trail is not None:
            self._trail.hold(self)
        self._log_successful_reads = log_successful_reads
        self._guarded = GuardedSink(sink, notices or Notices())
        rules = policy.rules if policy is not None else ()
        self._recorder = Recorder(
            self._guarded,
            decisions=Decisions(rules, on_loss=on_loss, log_successful_reads=log_successful_reads)
            if rules or not log_successful_reads
            else None,
            on_loss=on_loss,
            redactor=redactor or Redactor(),
            clock=clock,
            new_request_id=self.new_request_id,
        )
        self._log_call = self._recorder.log_call

    @property
    def recorder(self) -> Recorder:
        """The recorder behind this logger, for code that adds another source of events."""
        return self._recorder

    @property
    def settings(self) -> Settings | None:
        """The settings of the trail, or None if the sink is not a trail."""
        return self._trail.settings if self._trail is not None else None

    @staticmethod
    def new_request_id() -> str:
        """Return a random UUID."""
        return str(ids.new_random_id())

    def log(self, event: ModelLike, *, context: Context | None = None) -> Receipt | None:
        """Record an event and return its receipt, or None if the policy filters it. The caller's event is not changed.

        The event belongs to the span of `context`, or to the active one, unless it already has a `trace_id`.

        Raises:
            AuditUnavailable: only if the loss rule is `closed`: the event may not be durable.
        """
        return self._recorder.log(event, context)

    def log_mcp_call(
        self,
        *,
        request_id: str = "",
        tool_name: str,
        path: str = "",
        principal: AuditPrincipal | None = None,
        source: AuditSource | None = None,
        resource: AuditResource | None = None,
        outcome: str = "success",
        duration_ms: float | None = None,
        detail: str = "",
        jsonrpc_id: str | None = None,
        context: Context | None = None,
    ) -> Receipt | None:
        """Record the call of an MCP tool as an event `mcp.tools.call`. Return and raise as `log` does."""
        return self._log_call(
            "mcp.tools.call",
            request_id=request_id,
            context=context,
            jsonrpc_id=jsonrpc_id,
            principal=principal,
            source=source,
            transport="mcp-http",
            tool=tool_name,
            path=path,
            resource=resource,
            outcome=outcome,
            duration_ms=duration_ms,
            detail=detail,
        )

    def log_http_request(
        self,
        *,
        request_id: str = "",
        method: str,
        path: str,
        principal: AuditPrincipal | None = None,
        source: AuditSource | None = None,
        resource: AuditResource | None = None,
        outcome: str = "success",
        duration_ms: float | None = None,
        status_code: int = 200,
        context: Context | None = None,
    ) -> Receipt | None:
        """Record an HTTP request as an event `http.request`. Return and raise as `log` does."""
        return self._log_call(
            "http.request",
            request_id=request_id,
            context=context,
            principal=principal,
            source=source,
            transport="http",
            path=path,
            resource=resource,
            outcome=outcome,
            duration_ms=duration_ms,
            detail=fast_line.request_detail(method, path, status_code),
        )

    def log_authn(
        self,
        *,
        request_id: str = "",
        outcome: str,
        principal: AuditPrincipal | None = None,
        source: AuditSource | None = None,
        detail: str = "",
        context: Context | None = None,
    ) -> Receipt | None:
        """Record an authentication: `authn.success` if `outcome` is `success`, otherwise `authn.failure`. See `log`."""
        word = fast_line.word_of(outcome)
        return self._log_call(
            "authn.success" if isinstance(word, str) and word == "success" else "authn.failure",
            request_id=request_id,
            context=context,
            principal=principal,
            source=source,
            outcome=word,
            detail=detail,
        )

    def log_authz(
        self,
        *,
        request_id: str = "",
        outcome: str,
        principal: AuditPrincipal | None = None,
        resource: AuditResource | None = None,
        detail: str = "",
        context: Context | None = None,
    ) -> Receipt | None:
        """Record an authorization decision as an event `authz.decision`. Return and raise as `log` does."""
        return self._log_call(
            "authz.decision",
            request_id=request_id,
            context=context,
            principal=principal,
            resource=resource,
            outcome=outcome,
            detail=detail,
        )

    def operation(
        self,
        event_type: str,
        *,
        principal: AuditPrincipal | None = None,
        source: AuditSource | None = None,
        action: AuditAction | None = None,
        resource: AuditResource | None = None,
        request_id: str = "",
        detail: str = "",
        attributes: dict[str, Any] | None = None,
        exception_message: bool = False,
    ) -> Operation:
        """Return a context manager, plain or async, that records an event when its block ends: see `Operation`."""
        return operation(
            self._recorder,
            event_type,
            principal=principal,
            source=source,
            action=action,
            resource=resource,
            request_id=request_id,
            detail=detail,
            attributes=attributes,
            exception_message=exception_message,
        )

    def require(
        self,
        event_type: str,
        *,
        principal: AuditPrincipal | None = None,
        source: AuditSource | None = None,
        action: AuditAction | None = None,
        resource: AuditResource | None = None,
        request_id: str = "",
        detail: str = "",
        attributes: dict[str, Any] | None = None,
        exception_message: bool = False,
    ) -> Operation:
        """Return an `operation` whose block runs only once its beginning is recorded, whatever the policy says.

        It begins with a durable event and ends with another one that names the first as its `parent_id`. See
        `Operation`.

        Raises:
            AuditUnavailable: on entering: the block has not run.
        """
        return operation(
            self._recorder,
            event_type,
            is_required=True,
            principal=principal,
            source=source,
            action=action,
            resource=resource,
            request_id=request_id,
            detail=detail,
            attributes=attributes,
            exception_message=exception_message,
        )

    def audited(
        self, event_type: str, *, required: bool = False, **fields: Any
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Return a decorator for functions, plain or async, that runs each call as an `operation` with these fields.

        If `required`, each call runs as a `require`.
        """
        begin = self.require if required else self.operation
        return audited(lambda: begin(event_type, **fields))

    async def alog(self, event: ModelLike, *, context: Context | None = None) -> Receipt | None:
        """Do what `log` does, without blocking the event loop on a slow disk. Cancelling does not withdraw the event.

        A separate thread writes the event. With `fsync`, that thread is free again while the line is synced.

        Raises:
            AuditUnavailable: as `log`.
        """
        return await self._recorder.alog(event, context)

    def start(self) -> None:
        """Start delivery in this process, including the events that dead processes left behind.

        The first event and `flush` do the same. A server should call this at start-up, after its last fork; the
        integrations do so. A second call has no effect.
        """
        if self._trail is not None:
            self._trail.start()

    def flush(self, timeout_s: float = 5.0) -> FlushReport:
        """Wait until everything logged before this call is delivered, for at most `timeout_s` seconds.

        The report says what the destinations really accepted. A sink other than a trail delivers at once.
        """
        return self._trail.flush(timeout_s) if self._trail is not None else FlushReport(True, 0, {})

    def stats(self) -> Stats:
        """Return the current numbers of this process."""
        if self._trail is not None:
            return replace(self._trail.stats(), filtered=self._recorder.filtered)
        emitted, dropped = self._guarded.emitted, self._guarded.dropped
        return Stats(exported=emitted - dropped, dropped=dropped, filtered=self._recorder.filtered)

    def reopen(self) -> None:
        """Continue after this process was restored from a snapshot, as by Lambda SnapStart: see docs/delivery.md.

        Two processes restored from one memory image would write the same line numbers to the same stream. After this
        call, the process has its own stream, ids and connections. No other thread may log during the call, which can
        take up to the setting `close_timeout_s`.
        """
        if self._trail is not None:
            self._trail.hold(self)
            self._trail.reopen()

    def close(self, timeout_s: float | None = None) -> None:
        """Deliver for at most `timeout_s` seconds (by default `close_timeout_s`), then release all resources.

        Undelivered events stay in the journal. If another logger with the same configuration is open, the journal and
        its delivery stay open for it.
        """
        if self._trail is None:
            self._recorder.finish(_SINK_TIMEOUT_S)
            self._sink.close()
            return
        if timeout_s is None:
            timeout_s = self._trail.settings.close_timeout_s
        deadline = time.monotonic() + timeout_s
        self._recorder.finish(timeout_s)
        self._trail.give_back(self, max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
