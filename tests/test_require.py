"""What must not happen unrecorded is recorded before it happens, and refused where that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.event import AuditAction, AuditPrincipal
from otel_audit.logger import AuditLogger
from otel_audit.settings import OnLoss
from tests.recording import a_trail, recorder
from tests.requiring import CLOSED, Overdrawn, a_policy, both, events, fail, run


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path / "journal", policy=a_policy(tmp_path, CLOSED)) as logger:
        yield logger


# --- a begin and an end ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_what_is_required_is_on_disk_before_it_runs_and_ends_with_an_event_that_names_the_first(
    tmp_path: Path, is_async: bool, durability: str
) -> None:
    seen: list[list[dict[str, Any]]] = []
    with AuditLogger(a_trail(tmp_path / "journal", durability=durability)) as audit:
        running = audit.require("table.drop", principal=AuditPrincipal(username="ann"), attributes={"rows": 3})
        run(running, lambda: seen.append(events(tmp_path)), is_async=is_async)
        stats = audit.stats()

    ((begin,),) = seen
    first, last = events(tmp_path)
    assert first == begin
    assert (begin["event_type"], begin["outcome"], begin["principal"]["username"]) == ("table.drop", "unknown", "ann")
    assert "parent_id" not in begin
    assert "duration_ms" not in begin
    assert (last["outcome"], last["parent_id"]) == ("success", begin["event_id"])
    assert last["event_id"] != begin["event_id"]
    assert last["request_id"] == begin["request_id"]
    assert last["attributes"] == begin["attributes"] == {"rows": 3}
    assert last["duration_ms"] >= 0
    assert running.begun is not None
    assert running.begun.durable
    assert running.begun.event_id == begin["event_id"]
    assert running.receipt is not None
    assert running.receipt.event_id == last["event_id"]
    assert (stats.emitted, stats.dropped, stats.filtered) == (2, 0, 0)


@both
def test_an_operation_of_a_closed_rule_begins_with_an_event_and_one_of_an_open_rule_does_not(
    audit: AuditLogger, tmp_path: Path, is_async: bool
) -> None:
    run(audit.operation("table.drop"), is_async=is_async)
    run(audit.operation("report.export"), is_async=is_async)

    assert [(event["event_type"], event["outcome"]) for event in events(tmp_path)] == [
        ("table.drop", "unknown"),
        ("table.drop", "success"),
        ("report.export", "success"),
    ]


@both
def test_with_the_setting_closed_each_operation_begins_with_an_event(tmp_path: Path, is_async: bool) -> None:
    with recorder(tmp_path / "journal", on_loss=OnLoss.CLOSED) as audit:
        run(audit.operation("x"), is_async=is_async)

    assert [event["outcome"] for event in events(tmp_path)] == ["unknown", "success"]


@both
def test_an_error_of_the_block_is_what_the_caller_gets_and_the_end_says_it(
    audit: AuditLogger, tmp_path: Path, is_async: bool
) -> None:
    with pytest.raises(Overdrawn):
        run(audit.require("x"), fail, is_async=is_async)

    assert [(event["outcome"], event.get("error_type")) for event in events(tmp_path)] == [
        ("unknown", None),
        ("error", "Overdrawn"),
    ]


@both
def test_a_decorated_function_can_be_required(audit: AuditLogger, tmp_path: Path, is_async: bool) -> None:
    @audit.audited("x", required=True, detail="d")
    def plain(number: int) -> int:
        return number

    @audit.audited("x", required=True, detail="d")
    async def asynchronous(number: int) -> int:
        return number

    results = [asyncio.run(asynchronous(n)) if is_async else plain(n) for n in range(2)]

    assert results == [0, 1]
    assert [(event["outcome"], event["detail"]) for event in events(tmp_path)] == [
        ("unknown", "d"),
        ("success", "d"),
    ] * 2


def test_the_begin_and_the_end_have_the_span_that_is_active_there(audit: AuditLogger, tmp_path: Path) -> None:
    tracer = TracerProvider().get_tracer("t")

    async def main() -> str:
        with tracer.start_as_current_span("work") as span:
            async with audit.require("x"):
                pass
        return f"{span.get_span_context().span_id:016x}"

    span_id = asyncio.run(main())

    assert [event["span_id"] for event in events(tmp_path)] == [span_id] * 2


def test_what_the_caller_gave_as_parent_is_the_parent_of_the_begin(audit: AuditLogger, tmp_path: Path) -> None:
    with audit.require("outer") as outer:
        inner = audit.require("inner")
        inner.event.parent_id = outer.begun.event_id if outer.begun else None
        with inner:
            pass

    by_type = {(event["event_type"], event["outcome"]): event for event in events(tmp_path)}
    inner_begin = by_type["inner", "unknown"]
    assert inner_begin["parent_id"] == by_type["outer", "unknown"]["event_id"]
    assert by_type["inner", "success"]["parent_id"] == inner_begin["event_id"]


# --- what the policy leaves out ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "details"),
    [
        ("rules: [{keep: false}]", ["", ""]),
        ("rules: [{level: metadata}]", ["", ""]),
        ("rules: [{outcome: success, keep: false}]", ["", ""]),
        ("rules: [{outcome: error, level: metadata}]", ["", "d"]),
        ("rules: []", ["d", "d"]),
    ],
)
def test_what_is_required_is_recorded_whatever_the_policy_says_but_no_more_of_it_than_that_allows(
    tmp_path: Path, text: str, details: list[str]
) -> None:
    with recorder(tmp_path / "journal", policy=a_policy(tmp_path, text)) as audit:
        with audit.require("x", detail="d", action=AuditAction(arguments_digest="ab")):
            pass
        assert audit.stats().filtered == 0

    assert [event["detail"] for event in events(tmp_path)] == details
    assert ["arguments_digest" in event["action"] for event in events(tmp_path)] == [bool(text) for text in details]


def test_an_operation_that_may_come_to_a_closed_rule_has_begun_and_therefore_ends_in_the_trail(tmp_path: Path) -> None:
    policy = a_policy(tmp_path, "rules: [{outcome: success, keep: false}, {on_loss: closed}]")
    with recorder(tmp_path / "journal", policy=policy) as audit, audit.operation("x", detail="d"):
        pass

    assert [(event["outcome"], event["detail"]) for event in events(tmp_path)] == [("unknown", ""), ("success", "")]


def test_an_operation_that_is_not_kept_whatever_comes_of_it_leaves_nothing(tmp_path: Path) -> None:
    policy = a_policy(tmp_path, "rules: [{type: x, keep: false}]")
    with recorder(tmp_path / "journal", policy=policy, on_loss=OnLoss.CLOSED) as audit:
        with audit.operation("x") as running:
            pass
        stats = audit.stats()

    assert running.begun is running.receipt is None
    assert (stats.emitted, stats.filtered) == (0, 1)


def test_successful_reads_that_are_not_recorded_are_where_they_are_required(tmp_path: Path) -> None:
    read = AuditAction(mcp_tool="get_online_features")
    with recorder(tmp_path / "journal", log_successful_reads=False) as audit:
        with audit.operation("mcp.tools.call", action=read):
            pass
        assert audit.stats().filtered == 1
        with audit.require("mcp.tools.call", action=read):
            pass

    assert [event["outcome"] for event in events(tmp_path)] == ["unknown", "success"]
