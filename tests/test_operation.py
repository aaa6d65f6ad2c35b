"""An operation is recorded when it ends, as what it was: success, error, denied or cancelled."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.event import AuditAction, AuditPrincipal, AuditResource, AuditSource
from otel_audit.logger import AuditLogger
from otel_audit.operation import Operation
from otel_audit.sinks import AuditSink, JsonlEvent
from tests.chain_check import application_events
from tests.recording import event_of, recorder


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path) as logger:
        yield logger


class Overdrawn(Exception):
    """A failure of the application."""


class TimedOut(TimeoutError):
    """A time-out of a library."""


ENDS: list[tuple[BaseException | None, str, str | None]] = [
    (None, "success", None),
    (Overdrawn("account 42 of ann"), "error", "Overdrawn"),
    (ValueError(), "error", "ValueError"),
    (SystemExit(3), "error", "SystemExit"),
    (PermissionError(), "denied", "PermissionError"),
    (TimeoutError(), "cancelled", "TimeoutError"),
    (TimedOut(), "cancelled", "TimedOut"),
    (KeyboardInterrupt(), "cancelled", "KeyboardInterrupt"),
    (asyncio.CancelledError(), "cancelled", "CancelledError"),
]
ends = pytest.mark.parametrize(("error", "outcome", "error_type"), ENDS, ids=[repr(end[0]) for end in ENDS])


def ending(error: BaseException | None) -> str:
    if error is not None:
        raise error
    return "done"


def caught(run: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return run(), None
    except BaseException as error:
        return None, error


def the_event(directory: Path) -> dict[str, Any]:
    (event,) = application_events(directory)
    return event


@ends
def test_a_block_is_recorded_with_the_outcome_that_its_end_stands_for(
    audit: AuditLogger, tmp_path: Path, error: BaseException | None, outcome: str, error_type: str | None
) -> None:
    def run() -> None:
        with audit.operation("table.drop"):
            ending(error)

    assert caught(run)[1] is error
    event = the_event(tmp_path)
    assert (event["event_type"], event["outcome"], event.get("error_type")) == ("table.drop", outcome, error_type)
    assert event["duration_ms"] >= 0
    assert "account 42" not in str(event)


@ends
def test_an_async_block_is_recorded_in_the_same_way(
    audit: AuditLogger, tmp_path: Path, error: BaseException | None, outcome: str, error_type: str | None
) -> None:
    async def run() -> None:
        async with audit.operation("table.drop"):
            ending(error)

    coroutine = run()
    assert caught(lambda: coroutine.send(None))[1] is error or error is None
    event = the_event(tmp_path)
    assert (event["outcome"], event.get("error_type")) == (outcome, error_type)


@ends
def test_each_call_of_an_audited_function_is_recorded(
    audit: AuditLogger, tmp_path: Path, error: BaseException | None, outcome: str, error_type: str | None
) -> None:
    drop = audit.audited("table.drop")(ending)

    result, raised = caught(lambda: drop(error))

    assert raised is error
    assert result == (None if error else "done")
    event = the_event(tmp_path)
    assert (event["outcome"], event.get("error_type")) == (outcome, error_type)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(None, "success"), (Overdrawn(), "error"), (PermissionError(), "denied"), (TimeoutError(), "cancelled")],
    ids=repr,
)
def test_each_await_of_an_audited_coroutine_function_is_recorded_when_it_has_ended(
    audit: AuditLogger, tmp_path: Path, error: BaseException | None, outcome: str
) -> None:
    @audit.audited("table.drop")
    async def drop() -> str:
        await asyncio.sleep(0)
        assert application_events(tmp_path) == []
        return ending(error)

    result, raised = caught(lambda: asyncio.run(drop()))

    assert raised is error
    assert result == (None if error else "done")
    assert the_event(tmp_path)["outcome"] == outcome


def test_a_task_that_is_cancelled_leaves_a_cancelled_event(audit: AuditLogger, tmp_path: Path) -> None:
    @audit.audited("table.drop")
    async def drop() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(drop())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    event = the_event(tmp_path)
    assert (event["outcome"], event["error_type"]) == ("cancelled", "CancelledError")


def test_a_block_that_runs_out_of_time_leaves_a_cancelled_event(audit: AuditLogger, tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(0.01), audit.operation("table.drop"):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        asyncio.run(main())

    assert the_event(tmp_path)["outcome"] == "cancelled"


@pytest.mark.parametrize("error", [None, Overdrawn()], ids=repr)
def test_an_outcome_that_is_set_inside_is_kept(audit: AuditLogger, tmp_path: Path, error: BaseException | None) -> None:
    def run() -> None:
        with audit.operation("table.drop") as running:
            running.event.outcome = "denied"
            running.event.error_type = "Policy"
            ending(error)

    assert caught(run)[1] is error
    event = the_event(tmp_path)
    assert (event["outcome"], event["error_type"]) == ("denied", "Policy")


def test_everything_that_is_given_or_filled_in_is_recorded_and_the_receipt_is_there(
    audit: AuditLogger, tmp_path: Path
) -> None:
    with audit.operation(
        "table.drop",
        principal=AuditPrincipal(username="ann"),
        source=AuditSource(ip="10.0.0.1"),
        action=AuditAction(verb="DELETE"),
        resource=AuditResource(type="table", name="orders"),
        request_id="r-1",
        detail="from the console",
        attributes={"rows": 3},
    ) as running:
        running.event.policy_id = "p-7"
    event = event_of(tmp_path, running.receipt)

    assert event["principal"]["username"] == "ann"
    assert event["source"]["ip"] == "10.0.0.1"
    assert event["action"]["verb"] == "DELETE"
    assert event["resource"]["name"] == "orders"
    assert (event["request_id"], event["detail"], event["policy_id"]) == ("r-1", "from the console", "p-7")
    assert event["attributes"] == {"rows": 3}


def test_the_span_is_the_one_that_is_active_at_the_end(audit: AuditLogger, tmp_path: Path) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("work") as span, audit.operation("table.drop"):
        pass

    assert the_event(tmp_path)["span_id"] == f"{span.get_span_context().span_id:016x}"


def test_what_one_operation_fills_in_is_not_in_the_next_nor_in_what_the_caller_gave(audit: AuditLogger) -> None:
    principal = AuditPrincipal(username="service", roles=["reader"])
    attributes = {"tags": ["a"]}
    with audit.operation("x", principal=principal, attributes=attributes) as first:
        first.event.principal.username = "ann"
        first.event.principal.roles.append("admin")
        first.event.attributes = {**(first.event.attributes or {}), "more": 1}
    with audit.operation("x", principal=principal, attributes=attributes) as second:
        pass

    assert principal == AuditPrincipal(username="service", roles=["reader"])
    assert attributes == {"tags": ["a"]}
    assert (second.event.principal, second.event.attributes) == (principal, attributes)


def test_fields_of_odd_types_do_not_keep_the_block_from_running(audit: AuditLogger, tmp_path: Path) -> None:
    odd: Any = {"principal": "ann", "source": object(), "action": 7, "request_id": None, "attributes": {"a": {"b": 1}}}

    with audit.operation("x", **odd):
        ran = True

    assert ran
    event = the_event(tmp_path)
    assert (event["outcome"], event["principal"]["username"]) == ("success", "ann")
    assert event["attributes"] == {"a": '{"b":1}'}


def test_an_audited_function_keeps_its_name_signature_and_kind(audit: AuditLogger) -> None:
    def plain(a: int, *, b: str = "x") -> str:
        """What it does."""
        return f"{a}{b}"

    async def asynchronous() -> None: ...

    wrapped = audit.audited("x")(plain)

    assert (wrapped.__name__, wrapped.__doc__) == ("plain", "What it does.")
    assert inspect.signature(wrapped) == inspect.signature(plain)
    assert wrapped(1, b="y") == "1y"
    assert inspect.iscoroutinefunction(audit.audited("x")(asynchronous))
    assert not inspect.iscoroutinefunction(wrapped)


def test_calls_of_one_audited_function_at_the_same_time_do_not_mix(audit: AuditLogger, tmp_path: Path) -> None:
    @audit.audited("x")
    async def work(number: int) -> int:
        await asyncio.sleep(0.001 * (number % 3))
        ending(Overdrawn() if number % 2 else None)
        return number

    async def main() -> list[Any]:
        return await asyncio.gather(*(work(number) for number in range(20)), return_exceptions=True)

    results = asyncio.run(main())

    assert sum(isinstance(result, Overdrawn) for result in results) == 10
    outcomes = [event["outcome"] for event in application_events(tmp_path)]
    assert sorted(outcomes) == ["error"] * 10 + ["success"] * 10


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "function", [generator, async_generator, functools.partial(generator)], ids=["sync", "async", "partial"]
)
def test_a_generator_function_is_refused_since_its_call_is_over_before_it_has_run(
    audit: AuditLogger, function: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError, match=r"audited: expected a function or coroutine function, got .*generator"):
        audit.audited("x")(function)


class Broken(AuditSink):
    """A destination that takes nothing."""

    def emit(self, event: JsonlEvent) -> None:
        raise OSError("broken")


def test_an_operation_that_is_used_again_is_recorded_by_how_it_ended_then(audit: AuditLogger, tmp_path: Path) -> None:
    operation = audit.operation("x")
    with operation:
        pass
    first = event_of(tmp_path, operation.receipt)
    with pytest.raises(ZeroDivisionError), operation:
        raise ZeroDivisionError
    second = event_of(tmp_path, operation.receipt)

    assert (first["outcome"], second["outcome"], second["error_type"]) == ("success", "error", "ZeroDivisionError")
    assert "error_type" not in first


def test_an_operation_that_is_required_again_has_a_begin_and_a_parent_of_its_own(
    audit: AuditLogger, tmp_path: Path
) -> None:
    operation = audit.require("x")
    ends = []
    for _ in range(2):
        with operation:
            begin = event_of(tmp_path, operation.begun)
        ends.append(event_of(tmp_path, operation.receipt))
        assert "parent_id" not in begin
        assert ends[-1]["parent_id"] == begin["event_id"]
        assert ends[-1]["request_id"] == begin["request_id"]

    assert ends[0]["request_id"] != ends[1]["request_id"]


async def fails_later() -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError


def gives_a_coroutine() -> Any:
    return fails_later()


class AsyncCallable:
    async def __call__(self) -> None:
        await fails_later()


@pytest.mark.parametrize("function", [gives_a_coroutine, AsyncCallable()], ids=lambda value: type(value).__name__)
def test_a_function_that_gives_a_coroutine_ends_with_it(audit: AuditLogger, tmp_path: Path, function: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(audit.audited("x")(function)())

    assert [event["outcome"] for event in application_events(tmp_path)] == ["error"]


def test_what_cannot_be_called_is_refused_when_it_is_decorated(audit: AuditLogger) -> None:
    method: Any = classmethod(lambda cls: cls)

    with pytest.raises(TypeError, match="put @audited below"):
        audit.audited("x")(method)


def test_a_hostile_outcome_that_is_set_inside_hides_neither_the_end_nor_the_event(
    audit: AuditLogger, tmp_path: Path
) -> None:
    class Hostile:
        def __bool__(self) -> bool:
            raise RuntimeError("neither true nor false")

    hostile: Any = Hostile()
    operation = audit.operation("x")
    operation.event.outcome = operation.event.error_type = hostile
    with pytest.raises(ZeroDivisionError), operation:
        raise ZeroDivisionError

    assert event_of(tmp_path, operation.receipt)["event_type"] == "x"


@pytest.mark.parametrize("error", [None, Overdrawn()], ids=repr)
def test_a_loss_never_hides_how_the_block_ended(error: BaseException | None) -> None:
    audit = AuditLogger(Broken())

    def run() -> None:
        with audit.operation("x"):
            ending(error)

    assert caught(run)[1] is error
    assert audit.stats().dropped == 1


def test_a_read_that_is_filtered_has_no_receipt(tmp_path: Path) -> None:
    read = AuditResource(actions=["READ_ONLINE"])
    with (
        recorder(tmp_path, log_successful_reads=False) as audit,
        audit.operation("http.request", resource=read) as running,
    ):
        pass

    assert running.receipt is None
    assert list(tmp_path.glob("*.jsonl")) == []


class Speechless(Exception):
    """A failure that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_the_message_of_an_exception_is_recorded_on_request_only_and_redacted(
    audit: AuditLogger, tmp_path: Path
) -> None:
    def ended(operation: Operation) -> dict[str, Any]:
        with pytest.raises(ValueError, match="cannot connect"), operation:
            raise ValueError("cannot connect to postgres://feast:hunter2@db/feast")
        return event_of(tmp_path, operation.receipt)

    without = ended(audit.operation("a"))
    with_it = ended(audit.operation("a", exception_message=True))
    required = ended(audit.require("a", exception_message=True, attributes={"rows": 3}))

    message = {"exception.message": "cannot connect to postgres://feast:[REDACTED]@db/feast"}
    assert "attributes" not in without
    assert with_it["attributes"] == message
    assert required["attributes"] == {"rows": 3, **message}
    assert with_it["redacted"] == ["$.attributes.exception.message"]
    assert {event["error_type"] for event in (without, with_it, required)} == {"ValueError"}


@pytest.mark.parametrize(
    ("error", "attributes"), [(ValueError(), None), (Speechless(), {"exception.message": "[unreadable Speechless]"})]
)
def test_a_message_that_is_empty_or_cannot_be_read_costs_nothing(
    audit: AuditLogger, tmp_path: Path, error: Exception, attributes: dict[str, str] | None
) -> None:
    with pytest.raises(type(error)), audit.operation("a", exception_message=True) as operation:
        raise error

    assert event_of(tmp_path, operation.receipt).get("attributes") == attributes


def test_a_decorated_function_may_ask_for_the_message_too(audit: AuditLogger, tmp_path: Path) -> None:
    @audit.audited("a", exception_message=True)
    def fail() -> None:
        raise ValueError("out of range")

    with pytest.raises(ValueError, match="out of range"):
        fail()

    assert [event["attributes"] for event in application_events(tmp_path)] == [{"exception.message": "out of range"}]
