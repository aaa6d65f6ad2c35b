"""What becomes of an event between its caller and the sink: completed, decided on by the policy, redacted.

A helper's event is no model on the path to a journal: its line is written from the arguments. A property test holds
that the line equals that of the model.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import msgspec
from msgspec import UNSET
from opentelemetry.context import Context, get_current

from otel_audit import fast_line as draft
from otel_audit import ids
from otel_audit.event import AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.event_fields import as_event, fields_of
from otel_audit.fast_line import NOBODY, NOTHING, Action, Draft, Exchange, Principal, Resource, Source, SpanIds
from otel_audit.journal.commit import Commit
from otel_audit.journal.journal import Receipt
from otel_audit.loss import Handover
from otel_audit.policy.decisions import ROUTE_ATTRIBUTE, Decision, Decisions, Facts, Level, as_metadata, path_of
from otel_audit.redaction.redactor import Redactor
from otel_audit.settings import OnLoss
from otel_audit.trail import is_vital

__all__ = ["ModelLike", "Recorder"]

_encode = msgspec.json.Encoder().encode
_NONE, _METADATA, _REQUEST = Level.NONE, Level.METADATA, Level.REQUEST  # a member of an enum is slow to look up
_WRITER = "otel-audit-alog"
_FLOAT_AS_PYDANTIC = 1e16  # from here on msgspec and Pydantic write a float differently


class ModelLike(Protocol):
    """An event: ours, Feast's own, or anything else that gives its fields."""

    def model_dump(self) -> dict[str, Any]:
        """The fields, by name."""


class _Filtered:
    """Counts in one process: a forked child begins at zero. Any thread."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._lock = threading.RLock()  # a signal handler may come in that logs an event of the same kind
        self._pid = os.getpid()

    def add(self) -> None:
        if os.getpid() != self._pid:
            self._begin()  # the lock may be held by a thread of the parent
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        return self._count if os.getpid() == self._pid else 0


class _Writer:
    """The thread that `alog` writes on: an application may have filled those of its loop, and wait for this event."""

    def __init__(self) -> None:
        self._pid = 0

    @property
    def executor(self) -> ThreadPoolExecutor:
        if os.getpid() != self._pid:  # not begun, or forked: the thread is the parent's
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=_WRITER)
            self._pid = os.getpid()
        return self._executor

    def wait(self, timeout_s: float) -> None:
        """What was begun is written, or the time in seconds is over."""
        if os.getpid() == self._pid and not threading.current_thread().name.startswith(_WRITER):
            with suppress(RuntimeError, TimeoutError):  # the interpreter ends, and has waited for the thread
                self._executor.submit(int).result(timeout_s)


class Recorder:
    """Records events. Any thread. Without a policy (`decisions` is None) every event is recorded whole.

    `clock` gives nanoseconds since 1970.
    """

    def __init__(
        self,
        handover: Handover,
        *,
        decisions: Decisions | None,
        on_loss: OnLoss,
        redactor: Redactor,
        clock: Callable[[], int],
        new_request_id: Callable[[], str],
    ) -> None:
        self.new_request_id = new_request_id
        self._filtered = _Filtered()
        self._writer = _Writer()
        self._handover = handover
        self._append = handover.append
        self._has_journal = handover.trail is not None
        self._decisions = decisions
        self._default = Decision(_REQUEST, on_loss)
        self._on_loss = on_loss
        rules = decisions.rules if decisions is not None else ()
        self._may_refuse = OnLoss.CLOSED in (on_loss, *(rule.on_loss for rule in rules))
        self._redactor = redactor
        self._pseudonym_of = redactor.pseudonym_of
        self._clock = clock
        self._timestamps = draft.TimestampText()

    @property
    def filtered(self) -> int:
        """The events of this process that were not wanted."""
        return self._filtered.count

    def finish(self, timeout_s: float) -> None:
        """What `alog` has begun is with the sink, also of a cancelled task, or the time in seconds is over."""
        self._writer.wait(timeout_s)

    @property
    def syncs(self) -> bool:
        """Whether an event waits for the disk."""
        return self._handover.syncs

    @property
    def may_refuse(self) -> bool:
        """Whether there is an event that raises `AuditUnavailable` when it cannot be recorded."""
        return self._may_refuse

    @property
    def has_journal(self) -> bool:
        """Whether a receipt names the line of its event."""
        return self._has_journal

    def decision_on(self, event: AuditEvent) -> Decision:
        """What becomes of the event as it is."""
        return self._default if self._decisions is None else self._decisions.on(Facts.of(as_event(event)))

    def decision_before(self, event: AuditEvent) -> Decision:
        """What may become of the event, of which all is known but its outcome."""
        return self._default if self._decisions is None else self._decisions.before(Facts.of(as_event(event)))

    def log(self, event: ModelLike, context: Context | None = None, decision: Decision | None = None) -> Receipt | None:
        """The event is recorded; None if it was not wanted. `decision` takes the place of the policy's.

        Raises:
            AuditUnavailable: only where the loss rule is `closed`: the event is not known to be durable.
        """
        prepared = self._prepared(event, context, decision)
        return None if prepared is None else self._handover.hand(*prepared)

    async def alog(
        self, event: ModelLike, context: Context | None = None, decision: Decision | None = None
    ) -> Receipt | None:
        """`log`, without holding up the event loop while the disk is slow. Cancelling does not withdraw the event.

        Raises:
            AuditUnavailable: as `log`.
        """
        caller = get_current() if context is None else context  # of the caller's task, before the hop
        loop = asyncio._get_running_loop()
        try:
            if loop is None:  # another library's, which has no threads for us
                return self.log(event, caller, decision)
            written = loop.run_in_executor(self._writer.executor, lambda: self._begin(event, caller, decision))
        except RuntimeError:  # its threads have ended, and the loop is about to
            return self.log(event, caller, decision)
        receipt, commit, on_loss = await asyncio.shield(written)
        if commit is None or receipt is None:
            return receipt
        return await self._handover.committed(receipt, commit, on_loss)

    def _begin(
        self, event: ModelLike, context: Context, decision: Decision | None
    ) -> tuple[Receipt | None, Commit | None, OnLoss]:
        """`log`, but for the wait for the disk."""
        prepared = self._prepared(event, context, decision)
        if prepared is None:
            return None, None, OnLoss.OPEN
        return *self._handover.begin(*prepared), prepared[3]

    def _prepared(
        self, event: ModelLike, context: Context | None, decision: Decision | None
    ) -> tuple[dict[str, Any], int, int, OnLoss, bool] | None:
        """What is recorded of an event, its two times, its loss rule, and whether it is vital; None if not wanted."""
        given = as_event(event)
        decision = decision or self.decision_on(given)
        if decision.level is _NONE:
            self._filtered.add()
            return None
        fields = fields_of(given)
        if decision.level is _METADATA:
            fields = as_metadata(fields)
        now_ns = self._clock()
        filled = draft.completed(
            fields,
            timestamp=self._timestamps.of(now_ns),
            request_id=self.new_request_id(),
            span=SpanIds.active(context),
            event_id=str(ids.new_id()) if self._has_journal else None,
        )
        filled = self._redactor.rewritten(filled) if self._is_clean(fields) else self._redactor.clean(filled)
        time_ns = draft.time_ns_of(given.timestamp) if given.timestamp else None
        on_loss = decision.on_loss
        vital = decision.is_vital or is_vital(filled.get("outcome"), on_loss)
        return filled, now_ns if time_ns is None else time_ns, now_ns, on_loss, vital

    def _is_clean(self, fields: dict[str, Any]) -> bool:
        try:
            joined = "\n".join(draft.caller_texts(fields))
        except Exception:  # of a value that is not of its type
            return False
        return self._redactor.is_clean(joined) and (
            "attributes" not in fields or self._redactor.attributes_are_clean(fields["attributes"])
        )

    def log_call(
        self,
        event_type: str,
        request_id: str,
        context: Context | None,
        jsonrpc_id: str | None,
        principal: AuditPrincipal | None,
        source: AuditSource | None,
        default_source: Source,
        action: Action,
        resource: AuditResource | None,
        outcome: str,
        duration_ms: float | None,
        detail: str,
        exchange: Exchange | None = None,
    ) -> Receipt | None:
        """What all helpers do. No model is built, unless there is something to leave out, or a value of an odd type.

        Raises:
            AuditUnavailable: as `log`.
        """
        now_ns = self._clock()
        on_loss = self._on_loss
        texts = [request_id, action.mcp_tool, action.path, outcome, detail]
        try:
            who = Principal.of(principal, texts) if principal else NOBODY
            where = Source.of(source, texts) if source else default_source
            what = Resource.of(resource, texts) if resource else NOTHING
            if jsonrpc_id is not None:
                texts.append(jsonrpc_id)
            if exchange is not None:
                texts += (where.ip, where.user_agent or "", *exchange.texts())
            quick = self._has_journal and not self._redactor.rewrites_more and self._redactor.is_clean("\n".join(texts))
            if self._decisions is not None:
                level, on_loss, _ = self._decisions.on(
                    Facts(
                        event_type,
                        _route_of(action, exchange),
                        action.mcp_tool,
                        who.username,
                        outcome,
                        what.actions,
                        who.id or "",
                        who.issuer or "",
                    )
                )
                if level is _NONE:
                    self._filtered.add()
                    return None
                quick = quick and level is _REQUEST
            if quick:
                known = exchange or _NOT_KNOWN
                span = SpanIds.active(context) if known.span is UNSET else known.span
                event_id = known.event_id or str(ids.new_id())
                event = _encode(
                    Draft(
                        event_type,
                        self._timestamps.of(now_ns),
                        request_id or self.new_request_id(),
                        span.trace_id,
                        span.span_id,
                        UNSET if jsonrpc_id is None else jsonrpc_id,
                        who if self._pseudonym_of is None else who.renamed(self._pseudonym_of),
                        where,
                        action,
                        what,
                        outcome,
                        UNSET if duration_ms is None else _as_pydantic(duration_ms),
                        detail,
                        event_id,
                        span.flags,
                        known.status_code,
                        known.error_type,
                        known.parent_id,
                        known.attributes,
                    )
                )
        except Exception:  # of a value that is not of its type: the way through the models makes something of it
            quick = False
        if quick:
            return self._append(event_id, event, now_ns, now_ns, on_loss, is_vital(outcome, on_loss))
        given = {
            "event_type": event_type,
            "request_id": draft.given_or(request_id, ""),
            "jsonrpc_id": jsonrpc_id,
            "principal": draft.given_or(principal, {}),
            "source": draft.given_or(source, msgspec.to_builtins(default_source)),
            "action": {"mcp_tool": action.mcp_tool, "path": action.path}
            | ({"method": action.method} if action.method is not UNSET else {}),
            "resource": draft.given_or(resource, {}),
            "outcome": outcome,
            "duration_ms": duration_ms,
            "detail": detail,
            **(exchange.fields() if exchange is not None else {}),
        }
        return self.log(as_event(given), context)


_NOT_KNOWN = Exchange("")


def _route_of(action: Action, exchange: Exchange | None) -> str:
    if exchange is not None and exchange.attributes is not UNSET and ROUTE_ATTRIBUTE in exchange.attributes:
        return exchange.attributes[ROUTE_ATTRIBUTE]
    return path_of(action.path)


def _as_pydantic(number: float) -> float:
    """The number as a float that is written as Pydantic would."""
    value = float(number)
    if abs(value) >= _FLOAT_AS_PYDANTIC:
        raise OverflowError
    return value
