"""What a report says of a period: who did what, what was denied, who is new, and for what time nothing was recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from otel_audit import AuditEvent, AuditPrincipal, AuditResource
from otel_audit.event import AuditAction, AuditSource
from otel_audit.journal.journal import Journal
from otel_audit.journal.line import GAP
from otel_audit.journal.room import TRUNCATED
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters
from otel_audit.reporting.activity import Activity, activity_in
from otel_audit.stores.location import open_store
from tests.cli.journals import a_journal
from tests.stores.archives import archive_of

HOUR_NS = 3600 * 10**9
START_NS = time.time_ns() // HOUR_NS * HOUR_NS - 100 * HOUR_NS
BOB = AuditPrincipal(username="bob", id="sub-1", issuer="https://login.example.com")


def an_event(user: str | AuditPrincipal, event_type: str, outcome: str, **fields: Any) -> AuditEvent:
    principal = user if isinstance(user, AuditPrincipal) else AuditPrincipal(username=user)
    return AuditEvent(event_type=event_type, outcome=outcome, principal=principal, **fields)


def append(journal: Journal, hour: float, event: AuditEvent) -> None:
    moment_ns = START_NS + int(hour * HOUR_NS)
    journal.append("", event.to_jsonl().encode(), moment_ns, moment_ns)


def append_gap(journal: Journal, hour: float, gap: Mapping[str, Any]) -> None:
    assert journal.stream is not None
    journal.stream.write_system(GAP, gap, START_NS + int(hour * HOUR_NS))


def asked(path: Path, filters: Filters | None = None, *, rows_max: int = 100) -> Activity:
    with open_store(path) as store, TrailDatabase([store]) as database:
        return activity_in(database, filters or Filters(), rows_max=rows_max)


def columns(rows: Sequence[Mapping[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


@pytest.fixture
def trail(tmp_path: Path) -> Path:
    """Two services. The shop works from hour 0 to 3 and at hour 10, billing at hour 2 only."""
    directory = tmp_path / "journal"
    shop = a_journal(directory, service="shop")
    orders = AuditAction(path="/orders/7", method="GET")
    salaries = AuditResource(type="table", name="salaries")
    append(shop, 0, an_event("alice", "http.request", "success", action=orders))
    append(shop, 0.5, an_event("alice", "http.request", "denied", action=orders, resource=salaries, reason="no role"))
    append(shop, 1, an_event("alice", "http.request", "denied", action=orders, resource=salaries, event_id="last"))
    append(shop, 1.5, an_event("mallory", "authn.failure", "failure", source=AuditSource(ip="10.0.0.9")))
    append(shop, 2, an_event("mallory", "authn.failure", "failure", source=AuditSource(ip="10.0.0.9")))
    append(shop, 2.5, an_event("alice", "authn.success", "success"))
    append_gap(
        shop, 3, {"reason": "lost", "lines": 7, "by_reason": {"disk full": {"count": 7, "first_ns": 1, "last_ns": 2}}}
    )
    append(shop, 10, an_event(BOB, "mcp.tools.call", "mcp_error", action=AuditAction(mcp_tool="read")))
    append(shop, 10, an_event("", "http.request", "denied", action=orders))
    shop.close()
    billing = a_journal(directory, service="billing")
    append(billing, 2, an_event("alice", "order.paid", "success"))
    append_gap(billing, 2.5, {"reason": TRUNCATED, "lines": 3})
    billing.close()
    return directory


def test_events_are_counted_by_type_and_outcome(trail: Path) -> None:
    activity = asked(trail)

    assert set(columns(activity.types.rows, "event_type", "outcome", "result", "events")) == {
        ("http.request", "success", "success", 1),
        ("http.request", "denied", "denied", 3),
        ("authn.failure", "failure", "failure", 2),
        ("authn.success", "success", "success", 1),
        ("mcp.tools.call", "mcp_error", "error", 1),
        ("order.paid", "success", "success", 1),
    }
    assert (activity.totals["events"], activity.totals["denied"], activity.totals["failed_logins"]) == (9, 3, 2)
    assert activity.totals["actors"] == 3


def test_days_are_in_their_order_and_have_their_results(trail: Path) -> None:
    days = asked(trail).days.rows

    assert [day["day"] for day in days] == sorted(day["day"] for day in days)
    assert sum(day["events"] for day in days) == 9
    assert sum(day["success"] for day in days) == 3


def test_denials_say_who_what_why_and_which_event_was_the_last(trail: Path) -> None:
    first, second = asked(trail).denied.rows

    assert columns([first], "actor", "what", "target", "reason", "events", "last_event_id") == [
        ("alice", "GET /orders/7", "table/salaries", "no role", 2, "last")
    ]
    assert columns([second], "actor", "what", "events") == [(None, "GET /orders/7", 1)]


def test_failed_logins_are_grouped_by_actor_and_address(trail: Path) -> None:
    assert columns(asked(trail).failed_logins.rows, "actor", "client", "events") == [("mallory", "10.0.0.9", 2)]


def test_an_actor_is_new_if_the_trail_has_no_earlier_event_of_it(trail: Path) -> None:
    since = asked(trail, Filters(since_ns=START_NS + int(1.2 * HOUR_NS))).new_actors
    all_of_it = asked(trail, Filters(since_ns=START_NS - HOUR_NS)).new_actors

    assert since is not None
    assert columns(since.rows, "actor", "issuer", "name") == [
        ("mallory", None, "mallory"),
        ("sub-1", "https://login.example.com", "bob"),
    ]
    assert all_of_it is None
    assert asked(trail).new_actors is None


def test_gaps_and_the_events_that_they_tell_of_are_counted(trail: Path) -> None:
    activity = asked(trail)

    assert columns(activity.gaps.rows, "service", "lost", "reason", "reasons") == [
        ("shop", 7, "lost", ["disk full"]),
        ("billing", 0, TRUNCATED, []),  # what lacks in the row of numbers counts them
    ]
    assert (activity.totals["gaps"], activity.totals["lost"]) == (2, 7)
    assert columns(activity.services.rows, "service", "streams", "events", "gaps", "lost") == [
        ("billing", 1, 1, 1, 0),
        ("shop", 1, 8, 1, 7),
    ]


def test_silent_times_reach_from_the_beginning_to_the_end_of_the_period(trail: Path) -> None:
    period = Filters(since_ns=START_NS, until_ns=START_NS + 12 * HOUR_NS)

    silences = asked(trail, period).silences.rows

    found = [
        (row["service"], (row["since_ns"] - START_NS) / HOUR_NS, (row["until_ns"] - START_NS) / HOUR_NS)
        for row in silences
    ]
    assert found == [
        ("billing", 2.5, 12.0),
        ("shop", 3.0, 10.0),
        ("billing", 0.0, 2.0),
        ("shop", 10.0, 12.0),
    ]
    assert silences[0]["seconds"] == int(9.5 * 3600)


def test_a_report_on_one_actor_has_the_coverage_of_all(trail: Path) -> None:
    activity = asked(trail, Filters({"actor": ["bob"]}))

    assert activity.totals["events"] == 1
    assert columns(activity.actors.rows, "actor", "name", "failed") == [("sub-1", "bob", 1)]
    assert activity.totals["gaps"] == 2
    assert len(activity.services.rows) == 2


def test_a_report_on_one_service_knows_no_other(trail: Path) -> None:
    activity = asked(trail, Filters({"service": ["billing"]}))

    assert activity.totals["events"] == 1
    assert [row["service"] for row in activity.services.rows] == ["billing"]
    assert {row["service"] for row in activity.silences.rows} == {"billing"}


def test_a_table_has_a_bounded_number_of_rows_and_says_how_many_are_left_out(trail: Path) -> None:
    activity = asked(trail, rows_max=2)

    assert (len(activity.types.rows), activity.types.more, activity.types.total) == (2, 4, 6)
    assert (len(activity.actors.rows), activity.actors.more) == (2, 2)


def test_an_archive_gives_the_report_of_its_journal(trail: Path, tmp_path: Path) -> None:
    period = Filters(since_ns=START_NS + HOUR_NS, until_ns=START_NS + 12 * HOUR_NS)

    assert asked(archive_of(trail, tmp_path / "archive.jsonl"), period) == asked(trail, period)


def test_no_time_or_number_in_a_line_makes_a_report_fail(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    journal = a_journal(directory)
    for moment_ns in (-(2**63) + 1, 0, 2**63 - 1):
        journal.append("", an_event("alice", "http.request", "denied").to_jsonl().encode(), moment_ns, 0)
    append_gap(journal, 0, {"reason": "lost", "lines": 2**63 - 1, "by_reason": []})
    append_gap(journal, 0, {"reason": ["lost"], "lines": 2**63 - 1, "by_reason": {"a": 1}})
    append_gap(journal, 0, {"reason": None, "lines": 2**70})
    journal.close()

    activity = asked(directory)

    assert activity.totals["events"] == 3
    assert activity.silences.total == 4


def test_an_empty_trail_has_an_empty_report(tmp_path: Path) -> None:
    a_journal(tmp_path).close()
    journal = a_journal(tmp_path)
    append(journal, 0, an_event("alice", "http.request", "success"))
    journal.close()

    activity = asked(tmp_path, Filters({"actor": ["nobody"]}, since_ns=START_NS - HOUR_NS))

    assert activity.totals["events"] == 0
    assert activity.denied.rows == activity.types.rows == []
