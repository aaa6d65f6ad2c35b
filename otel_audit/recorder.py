"""Take an event from its caller to the sink: complete it, ask the policy, redact it.

On its way to a journal, a helper's event is never a model: its line is written from the arguments. A property test
holds that the line equals that of the model.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from opentelemetry.context import Context, get_current
from opentelemetry.trace import get_current_span

from otel_audit import fast_line, ids
from otel_audit.fast_line import NOBODY, NOTHING, Action, Draft, Principal, Resource, Source, SpanIds, Text, span_ids
from otel_audit.journal.background import Commit
from otel_audit.journal.journal import Receipt
from otel_audit.loss import GuardedSink
from otel_audit.policy.decisions import ROUTE_ATTRIBUTE, Decision, Decisions, Facts, Level, as_metadata, path_of
from otel_audit.redaction.redactor import Redactor
from otel_audit.settings import OnLoss
from otel_audit.trail import is_vital

if TYPE_CHECKING:
    from otel_audit.event import AuditEvent, AuditPrincipal, AuditResource, AuditSource

__all__ = ["ModelLike", "Recorder"]

_encode = msgspec.json.Encoder().encode
_NONE, _METADATA, _REQUEST = Level.NONE, Level.METADATA, Level.REQUEST  # a member of an enum is slow to look up
_WRITER = "otel-audit-alog"
_FLOAT_AS_PYDANTIC = 1e16  # from here on msgspec and Pydantic write a float differently


class ModelLike(Protocol):
    """An event: ours, Feast's own, or anything else that gives its fields."""

    def model_dump(self) -> dict[str, Any]:
        """Return the fields, by name."""


class _Filtered:
    """Count in one process, from any thread. A forked child begins at zero."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._lock = threading.RLock()  # a signal handler may log an event of the same kind meanwhile
        self._pid = os.getpid()

    def add(self) -> None:
        if os.getpid() != self._pid:
            self._begin()  # a thread of the parent may hold the lock
        with self._lock:
            self._count += 1

    @property
    def count(self) -> int:
        return self._count if os.getpid() == self._pid else 0


class _Writer:
    """The thread that `alog` writes on. Those of the loop may all be in use by code that waits for this very event."""

    def __init__(self) -> None:
        self._pid = 0

    @property
    def executor(self) -> ThreadPoolExecutor:
        if os.getpid() != self._pid:  # not begun, or forked: the thread is that of the parent
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=_WRITER)
            self._pid = os.getpid()
        return self._executor

    def wait(self, timeout_s: float) -> None:
        """Return when all that was begun is written, or after `timeout_s` seconds."""
        if os.getpid() == self._pid and not threading.current_thread().name.startswith(_WRITER):
            with suppress(RuntimeError, TimeoutError):  # the interpreter is ending, and has waited for the thread
                self._executor.submit(int).result(timeout_s)


class Recorder:
    """Record events, from any thread. Without a policy (`decisions` is None), record every event completely.

    `clock` gives nanoseconds since 1970.
    """

    def __init__(
        self,
        sink: GuardedSink,
        *,
        decisions: Decisions | None,
        on_loss: OnLoss,
        redactor: Redactor,
        clock: Callable[[], int],
        new_request_id: Callable[[], str],
    ) -> None:
        from otel_audit.event import as_event, fields_of

        self._as_event, self._fields_of = as_event, fields_of  # an import statement costs each event 0.6 us
        self.new_request_id = new_request_id
        self._filtered = _Filtered()
        self._writer = _Writer()
        self._sink = sink
        self._has_journal = sink.trail is not None
        self._decisions = decisions
        self._default = Decision(_REQUEST, on_loss)
        self._on_loss = on_loss
        rules = decisions.rules if decisions is not None else ()
        self._may_refuse = OnLoss.CLOSED in (on_loss, *(rule.on_loss for rule in rules))
        self._redactor = redactor
        self._clock = clock
        self._timestamps = fast_line.TimestampText()
        self.log_call = self._helper_call()

    @property
    def filtered(self) -> int:
        """Return how many events of this process the policy filtered."""
        return self._filtered.count

    def finish(self, timeout_s: float) -> None:
        """Return when the sink has everything that `alog` began, also for cancelled tasks, or when the time is over."""
        self._writer.wait(timeout_s)

    @property
    def syncs(self) -> bool:
        """Return True if an event waits for the disk."""
        return self._sink.syncs

    @property
    def may_refuse(self) -> bool:
        """Return True if any rule can refuse an event with `AuditUnavailable`."""
        return self._may_refuse

    @property
    def has_journal(self) -> bool:
        """Return True if a receipt names the line of its event."""
        return self._has_journal

    def decision_on(self, event: AuditEvent) -> Decision:
        """Return what the policy decides on the event as it is."""
        return self._default if self._decisions is None else self._decisions.on(Facts.of(self._as_event(event)))

    def decision_before(self, event: AuditEvent) -> Decision:
        """Return what the policy may decide on the event, of which only the outcome is unknown."""
        return self._default if self._decisions is None else self._decisions.before(Facts.of(self._as_event(event)))

    def log(self, event: ModelLike, context: Context | None = None, decision: Decision | None = None) -> Receipt | None:
        """Record the event, or return None if the policy filters it. `decision` replaces that of the policy.

        Raises:
            AuditUnavailable: only if the loss rule is `closed`: the event may not be durable.
        """
        prepared = self._prepared(event, context, decision)
        return None if prepared is None else self._sink.write(*prepared)

    async def alog(
        self, event: ModelLike, context: Context | None = None, decision: Decision | None = None
    ) -> Receipt | None:
        """Do what `log` does, without blocking the event loop on a slow disk. Cancelling does not withdraw the event.

        Raises:
            AuditUnavailable: as `log`.
        """
        caller = get_current() if context is None else context  # of the caller's task, before the hop
        loop = asyncio._get_running_loop()
        try:
            if loop is None:  # the loop of another library, which has no threads for us
                return self.log(event, caller, decision)
            written = loop.run_in_executor(self._writer.executor, lambda: self._begin(event, caller, decision))
        except RuntimeError:  # its threads have ended, and the loop is ending
            return self.log(event, caller, decision)
        receipt, commit, on_loss = await asyncio.shield(written)
        if commit is None or receipt is None:
            return receipt
        return await self._sink.committed(receipt, commit, on_loss)

    def _begin(
        self, event: ModelLike, context: Context, decision: Decision | None
    ) -> tuple[Receipt | None, Commit | None, OnLoss]:
        """Do what `log` does, but leave the wait for the disk to the caller."""
        prepared = self._prepared(event, context, decision)
        if prepared is None:
            return None, None, OnLoss.OPEN
        return *self._sink.begin(*prepared), prepared[3]

    def _prepared(
        self, event: ModelLike, context: Context | None, decision: Decision | None
    ) -> tuple[dict[str, Any], int, int, OnLoss, bool] | None:
        """Return what to record of an event, its two times, its loss rule and if it is vital; None if filtered."""
        given = self._as_event(event)
        decision = decision or self.decision_on(given)
        if decision.level is _NONE:
            self._filtered.add()
            return None
        fields = self._fields_of(given)
        if decision.level is _METADATA:
            fields = as_metadata(fields)
        if decision.tags:
            fields = _tagged(fields, decision.tags)
        now_ns = self._clock()
        filled = fast_line.completed(
            fields,
            timestamp=self._timestamps.of(now_ns),
            request_id=self.new_request_id(),
            span=span_ids(get_current_span(context).get_span_context()),
            event_id=str(ids.new_id()) if self._has_journal else None,
        )
        filled = self._redactor.rewritten(filled) if self._is_clean(fields) else self._redactor.clean(filled)
        time_ns = fast_line.time_ns_of(given.timestamp) if given.timestamp else None
        on_loss = decision.on_loss
        vital = decision.is_vital or is_vital(filled.get("outcome"), on_loss)
        return filled, now_ns if time_ns is None else time_ns, now_ns, on_loss, vital

    def _is_clean(self, fields: dict[str, Any]) -> bool:
        try:
            return self._redactor.is_clean(fast_line.caller_texts(fields)) and (
                "attributes" not in fields or self._redactor.attributes_are_clean(fields["attributes"])
            )
        except Exception:  # of a value that is not of its type
            return False

    def _helper_call(self) -> Callable[..., Receipt | None]:
        """Return `log_call`, the one function behind all helpers.

        It takes the fields of an event by keyword, and builds no model unless there is something to leave out or a
        value of an odd type. Without a `source` the event has `ip`, `transport` and `user_agent`; without a `span` it
        has that of `context`, else the active one. The keys of `attributes` are a program's own, their values texts.

        It raises `AuditUnavailable` as `log` does.
        """
        # One function with all that it needs in its own variables. In a busy server little of this is in the caches of
        # the processor, so that each call, object and look-up costs several times what a loop of calls shows.
        may_be_quick = self._has_journal and not self._redactor.rewrites_more
        clock, timestamp_of, new_request_id = self._clock, self._timestamps.of, self.new_request_id
        is_clean, pseudonym_of = self._redactor.is_clean, self._redactor.pseudonym_of
        default_loss, decisions, sink = self._on_loss, self._decisions, self._sink
        journal, syncs = sink.journal, sink.syncs

        def log_call(
            event_type: str,
            outcome: str,
            request_id: str = "",
            context: Context | None = None,
            jsonrpc_id: str | None = None,
            principal: AuditPrincipal | None = None,
            source: AuditSource | None = None,
            ip: str = "",
            transport: str = "",
            user_agent: Text = UNSET,
            tool: str = "",
            path: str = "",
            method: Text = UNSET,
            resource: AuditResource | None = None,
            duration_ms: float | None = None,
            detail: str = "",
            event_id: str = "",
            span: SpanIds | None = None,
            status_code: int | UnsetType = UNSET,
            error_type: Text = UNSET,
            parent_id: Text = UNSET,
            attributes: dict[str, str] | UnsetType = UNSET,
        ) -> Receipt | None:
            now_ns = clock()
            on_loss = default_loss
            quick = may_be_quick
            try:
                who, what = NOBODY, NOTHING
                username = auth_type = target_type = target = ""
                roles: list[str] = []
                actions = more = roles
                if principal:
                    of = principal.__dict__
                    username, roles, auth_type = of["username"], of["roles"], of["auth_type"]
                    identity, issuer, kind = of.get("id"), of.get("issuer"), of.get("kind")
                    behalf = of.get("on_behalf_of")
                    if identity is None and issuer is None and kind is None and behalf is None:
                        who = Principal(username, roles, auth_type)
                    else:
                        more = [identity or "", issuer or "", kind or "", behalf or ""]
                        ours = [UNSET if each is None else each for each in (identity, issuer, kind, behalf)]
                        who = Principal(username, roles, auth_type, *ours)
                if source:
                    of = source.__dict__
                    ip, transport, agent = of["ip"], of["transport"], of.get("user_agent")
                    user_agent = UNSET if agent is None else agent
                if resource:
                    of = resource.__dict__
                    target_type, target, actions = of["type"], of["name"], of["actions"]
                    what = Resource(target_type, target, actions)
                texts = [request_id, tool, path, outcome, detail, username, auth_type, *roles]
                texts += (ip, transport, target_type, target, *actions)
                if more:
                    texts += more
                if user_agent is not UNSET:
                    texts.append(user_agent)
                if jsonrpc_id is not None:
                    texts.append(jsonrpc_id)
                if error_type is not UNSET:
                    texts.append(error_type)
                if attributes is not UNSET:
                    texts += attributes
                    texts += attributes.values()
                quick = quick and is_clean(texts)
                if decisions is not None:
                    route = None if attributes is UNSET else attributes.get(ROUTE_ATTRIBUTE)
                    route = path_of(path) if route is None else route
                    actor = who.id or "", who.issuer or ""
                    facts = Facts(event_type, route, tool, username, outcome, actions, *actor)
                    level, on_loss, _, tags = decisions.on(facts)
                    if level is _NONE:
                        self._filtered.add()
                        return None
                    quick = quick and level is _REQUEST and not tags  # few events have tags
                if quick:
                    if span is None:
                        span = span_ids(get_current_span(context).get_span_context())
                    event_id = event_id or str(ids.new_id())
                    event = _encode(
                        Draft(
                            event_type,
                            timestamp_of(now_ns),
                            request_id or new_request_id(),
                            span.trace_id,
                            span.span_id,
                            UNSET if jsonrpc_id is None else jsonrpc_id,
                            who if pseudonym_of is None else who.renamed(pseudonym_of),
                            Source(ip, transport, user_agent),
                            Action(tool, path, method),
                            what,
                            outcome,
                            UNSET if duration_ms is None else _as_pydantic(duration_ms),
                            detail,
                            event_id,
                            span.flags,
                            status_code,
                            error_type,
                            parent_id,
                            attributes,
                        )
                    )
            except Exception:  # a value has the wrong type: the way through the models converts it
                quick = False
            if quick and journal is not None:
                if syncs:
                    sink.warn_on_loop()
                try:
                    return journal.append(event_id, event, now_ns, now_ns, is_vital(outcome, on_loss))
                except Exception as error:
                    return sink.failed(event_id, error, on_loss)
            given: dict[str, Any] = {
                "event_type": event_type,
                "request_id": fast_line.given_or(request_id, ""),
                "jsonrpc_id": jsonrpc_id,
                "principal": fast_line.given_or(principal, {}),
                "source": fast_line.given_or(source, _given(ip=ip, transport=transport, user_agent=user_agent)),
                "action": _given(mcp_tool=tool, path=path, method=method),
                "resource": fast_line.given_or(resource, {}),
                "outcome": outcome,
                "duration_ms": duration_ms,
                "detail": detail,
            }
            given |= _given(
                event_id=event_id or UNSET,
                status_code=status_code,
                error_type=error_type,
                parent_id=parent_id,
                attributes=attributes,
            )
            if span is not None:
                given |= _given(trace_id=span.trace_id, span_id=span.span_id, trace_flags=span.flags)
                context = _NO_SPAN
            return self.log(self._as_event(given), context)

        return log_call


_NO_SPAN = Context()  # the caller knows its span, or knows that there is none


def _tagged(fields: dict[str, Any], tags: Sequence[str]) -> dict[str, Any]:
    own = fields.get("tags")
    both = dict.fromkeys([*(own if isinstance(own, list) else ()), *tags])
    return {**fields, "tags": list(both)}


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not UNSET}


def _as_pydantic(number: float) -> float:
    """Return the number as a float that is written as Pydantic would."""
    value = float(number)
    if abs(value) >= _FLOAT_AS_PYDANTIC:
        raise OverflowError
    return value
