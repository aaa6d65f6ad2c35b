"""Record an operation when it ends and, if it is required, before it begins."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from opentelemetry.context import Context

from otel_audit import fast_line, ids
from otel_audit.errors import AuditUnavailable, is_stop
from otel_audit.event_schema import Outcome
from otel_audit.journal.journal import Receipt
from otel_audit.json_values import JsonValues
from otel_audit.policy.decisions import Decision
from otel_audit.recorder import Recorder
from otel_audit.settings import OnLoss

if TYPE_CHECKING:
    from otel_audit.event import AuditEvent

__all__ = ["EXCEPTION_MESSAGE", "Operation", "audited", "operation"]

P = ParamSpec("P")
R = TypeVar("R")

EXCEPTION_MESSAGE: Final = "exception.message"  # Source: OTel semantic conventions, "Exceptions"


class Operation:
    """A plain or async context manager around one operation. It cannot be entered twice at the same time.

    The block may fill in `event`, from which the final event is made. If the block sets no `outcome`, it is `success`
    after a normal end, `cancelled` after a time-out or cancellation, `denied` after a `PermissionError`, and `error`
    after any other exception. Only the class of an exception is recorded, since its message may hold anything. With
    `exception_message`, the message is recorded as the attribute `exception.message`, redacted and cut like any other.
    The span comes from `context`, or is the active one.

    If the operation is required, or its loss rule is `closed`, an event with the outcome `unknown` is recorded before
    the block runs (`begun` is its receipt), and the event at the end has its id as `parent_id`. If the first event
    cannot be recorded, the block does not run. If the last one cannot, the loss is counted and reported, and the caller
    gets the result of the block. In an `async with`, neither event blocks the event loop.

    Raises:
        AuditUnavailable: on entering: the block has not run. On leaving: the event is lost. The latter happens only if
            there was no first event, values set inside the block made the rule `closed`, and the block did not raise.
    """

    def __init__(
        self,
        recorder: Recorder,
        event: AuditEvent,
        *,
        context: Context | None = None,
        is_required: bool = False,
        exception_message: bool = False,
    ) -> None:
        self.event = event
        self.begun: Receipt | None = None
        self.receipt: Receipt | None = None
        self._recorder = recorder
        self._context = context
        self._is_required = is_required
        self._with_message = exception_message
        self._started_ns = 0
        self._of_begin: dict[str, str | None] = {}  # fields that the final event takes over from the first one

    def __enter__(self) -> Operation:
        decision = self._decision_before()
        if decision is not None:
            self._has_begun(self._recorder.log(self._begin(), self._context, decision))
        self._started_ns = time.perf_counter_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        ended = self._ended(kind, error)
        self.receipt = self._recorder.log(ended, self._context, self._decision_at_end(ended, kind))

    async def __aenter__(self) -> Operation:
        decision = self._decision_before()
        if decision is not None:
            self._has_begun(await self._recorder.alog(self._begin(), self._context, decision))
        self._started_ns = time.perf_counter_ns()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        waits = self.begun is not None or self._recorder.syncs
        if not waits or kind is GeneratorExit:  # a coroutine that is being closed may not await
            self.__exit__(kind, error, at)
            return
        ended = self._ended(kind, error)
        self.receipt = await self._recorder.alog(ended, self._context, self._decision_at_end(ended, kind))

    def _decision_before(self) -> Decision | None:
        """Return how to record the first event, or None if there is none."""
        self.begun, self._of_begin = None, {}
        decision = self._recorder.decision_before(self.event)
        if self._is_required:
            return decision.kept()._replace(on_loss=OnLoss.CLOSED)
        return decision if decision.keep and decision.on_loss is OnLoss.CLOSED else None

    def _begin(self) -> AuditEvent:
        request_id = fast_line.given_or(self.event.request_id, self._recorder.new_request_id())
        self._of_begin["request_id"] = request_id
        own = {"event_id": str(ids.new_id()), "request_id": request_id, "outcome": Outcome.UNKNOWN.value}
        return self.event.model_copy(update=own)

    def _has_begun(self, receipt: Receipt | None) -> None:
        if receipt is None or (receipt.seq is None and self._recorder.has_journal):
            raise AuditUnavailable(
                f"{self.event.event_type}: expected to record that it begins, got a call from inside log() of the same "
                "thread (a signal handler, a finalizer), which cannot wait for the disk; begin it elsewhere"
            )
        self.begun = receipt
        self._of_begin["parent_id"] = receipt.event_id

    def _ended(self, kind: type[BaseException] | None, error: BaseException | None) -> AuditEvent:
        event = self.event
        facts: dict[str, Any] = {
            **self._of_begin,
            "duration_ms": (time.perf_counter_ns() - self._started_ns) / 1e6,
            "outcome": fast_line.given_or(event.outcome, _outcome_of(error).value),
        }
        if kind is not None:
            facts["error_type"] = fast_line.given_or(event.error_type, kind.__qualname__)
        if error is not None and self._with_message:
            facts["attributes"] = _with_message_of(error, event.attributes)
        return event.model_copy(update=facts)

    def _decision_at_end(self, ended: AuditEvent, kind: type[BaseException] | None) -> Decision:
        decision = self._recorder.decision_on(ended)
        if self.begun is None and kind is None:
            return decision
        # A recorded beginning needs a recorded end, and losing that end must not replace the result of the block.
        decision = decision if self.begun is None else decision.kept()
        return decision._replace(on_loss=OnLoss.OPEN, is_vital=self.begun is not None)


def operation(
    recorder: Recorder,
    event_type: str,
    *,
    is_required: bool = False,
    exception_message: bool = False,
    context: Context | None = None,
    **fields: Any,
) -> Operation:
    """Return an operation whose event starts with these fields of `AuditEvent`. None means unset."""
    from otel_audit.event import as_event

    # The event is built from plain values, so that filling it in does not change the caller's own objects.
    given = {"event_type": event_type, **{name: value for name, value in fields.items() if value is not None}}
    return Operation(
        recorder, as_event(given), is_required=is_required, exception_message=exception_message, context=context
    )


def audited(begin: Callable[[], Operation]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that runs each call of a function, plain or async, inside a new operation.

    If a plain function returns a coroutine, as another decorator's may, the operation ends with the coroutine.

    Raises:
        TypeError: `function` is a generator function, whose call returns before its body runs (use an operation inside
            it), or it is not callable, like the object that `@classmethod` makes (put this decorator below that one).
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if not callable(function):
            raise TypeError(f"audited: expected a function, got {function!r}; put @audited below, next to the function")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"audited: expected a function or coroutine function, got the generator function {function!r}; "
                "use `with audit.operation(...)` inside it"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                async with begin():
                    return await function(*args, **kwargs)

            return cast(Callable[P, R], run_async)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            operation = begin()
            operation.__enter__()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                operation.__exit__(type(error), error, error.__traceback__)
                raise
            if inspect.iscoroutine(result):
                return cast(R, _ends_with(result, operation))
            operation.__exit__(None, None, None)
            return result

        return run

    return decorate


async def _ends_with(coroutine: Coroutine[Any, Any, Any], operation: Operation) -> Any:
    try:
        result = await coroutine
    except BaseException as error:
        await operation.__aexit__(type(error), error, error.__traceback__)
        raise
    await operation.__aexit__(None, None, None)
    return result


def _with_message_of(error: BaseException, attributes: Any) -> Any:
    message = JsonValues(depth=1, items=1).key(error)  # its own `__str__` may raise
    if message and (attributes is None or isinstance(attributes, dict)):
        return {**(attributes or {}), EXCEPTION_MESSAGE: message}
    return attributes


def _outcome_of(error: BaseException | None) -> Outcome:
    if error is None:
        return Outcome.SUCCESS
    if is_stop(error):
        return Outcome.CANCELLED
    return Outcome.DENIED if isinstance(error, PermissionError) else Outcome.ERROR
