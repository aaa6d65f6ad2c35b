"""A trail for one test, and what is said when an event is not in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import otel_audit
from otel_audit import AuditLogger, AuditPrincipal, AuditResource, Outcome, StdoutAuditSink
from otel_audit.testing.events import AuditEvents
from otel_audit.testing.trail import trail_for_test
from tests.chain_check import application_events, read_streams

ANN = AuditPrincipal(username="ann", roles=["writer"])
ORDER = AuditResource(type="order", name="7", actions=["DELETE"])


@pytest.fixture
def three_events(audit_trail: AuditLogger) -> None:
    audit_trail.log_authn(outcome="success", principal=ANN)
    audit_trail.log_authz(outcome="deny", principal=ANN, resource=ORDER)
    audit_trail.log_http_request(method="DELETE", path="/orders/7", principal=ANN, outcome="denied", status_code=403)


@pytest.mark.usefixtures("three_events")
def test_an_event_is_found_by_its_fields(audit_events: AuditEvents) -> None:
    assert audit_events.one(event_type="authz.decision").resource == ORDER
    assert audit_events.one(outcome=Outcome.DENIED, action={"path": "/orders/7"}).principal.username == "ann"
    assert [event.event_type for event in audit_events.matching(principal="ann", source={"transport": ""})] == [
        "authn.success",
        "authz.decision",
    ]
    audit_events.none(principal="bob")


@pytest.mark.usefixtures("three_events")
def test_events_come_in_the_order_in_which_they_were_recorded(audit_events: AuditEvents) -> None:
    assert [event.event_type for event in audit_events] == ["authn.success", "authz.decision", "http.request"]
    assert len(audit_events) == 3


@pytest.mark.usefixtures("three_events")
def test_an_event_that_is_missing_is_told_by_what_was_logged_instead(audit_events: AuditEvents) -> None:
    with pytest.raises(AssertionError) as failed:
        audit_events.one(event_type="authz.decision", outcome="allow", principal={"username": "bob", "roles": []})

    assert str(failed.value).split("\n") == [
        "expected one event with event_type='authz.decision', outcome='allow', "
        "principal={'username': 'bob', 'roles': []}, got none",
        "logged instead:",
        "  2. authz.decision",
        "       outcome: expected 'allow', got 'deny'",
        "       principal.username: expected 'bob', got 'ann'",
        "       principal.roles: expected [], got ['writer']",
        "  1. authn.success",
        "       event_type: expected 'authz.decision', got 'authn.success'",
        "       outcome: expected 'allow', got 'success'",
        "       principal.username: expected 'bob', got 'ann'",
        "       principal.roles: expected [], got ['writer']",
        "  3. http.request",
        "       event_type: expected 'authz.decision', got 'http.request'",
        "       outcome: expected 'allow', got 'denied'",
        "       principal.username: expected 'bob', got 'ann'",
        "       principal.roles: expected [], got ['writer']",
    ]


@pytest.mark.usefixtures("three_events")
def test_events_that_are_too_many_are_listed(audit_events: AuditEvents) -> None:
    with pytest.raises(AssertionError, match="expected one event with principal='ann', got 3:") as failed:
        audit_events.one(principal="ann")
    assert "\n  2. authz.decision outcome='deny' principal={'username': 'ann', 'roles': ['writer']} " in str(
        failed.value
    )
    with pytest.raises(AssertionError, match=r"expected no event at all, got 3:\n  1\. authn\.success"):
        audit_events.none()


def test_nothing_is_said_to_be_logged_where_nothing_was(audit_events: AuditEvents) -> None:
    with pytest.raises(AssertionError, match="expected one event at all, got none\nnothing was logged"):
        audit_events.one()


def test_of_many_events_the_nearest_are_shown(audit_trail: AuditLogger, audit_events: AuditEvents) -> None:
    for number in range(20):
        audit_trail.log_mcp_call(tool_name=f"tool-{number}")
    audit_trail.log_authn(outcome="failure")

    with pytest.raises(AssertionError) as failed:
        audit_events.one(event_type="authn.failure", outcome="denied")

    said = str(failed.value).split("\n")
    assert said[2] == "  21. authn.failure"
    assert said[-1] == "  and 11 more"


def test_a_field_that_does_not_exist_is_an_error_of_the_test(audit_events: AuditEvents) -> None:
    with pytest.raises(TypeError, match=r"expected fields of AuditEvent \(event_type, .*, got 'outcom'"):
        audit_events.none(outcom="success")
    with pytest.raises(TypeError, match=r"expected fields of AuditPrincipal \(username, .*, got 'principal.user'"):
        audit_events.none(principal={"user": "ann"})


def test_attributes_are_compared_one_by_one(audit_trail: AuditLogger, audit_events: AuditEvents) -> None:
    with audit_trail.operation("job.cleanup", attributes={"days": 3, "dry": True}):
        """Nothing is done."""

    audit_events.one(attributes={"days": 3})
    with pytest.raises(AssertionError, match=r"attributes\.days: expected 4, got 3"):
        audit_events.one(attributes={"days": 4})


def test_what_was_forgotten_is_not_looked_at(audit_trail: AuditLogger, audit_events: AuditEvents) -> None:
    audit_trail.log_authn(outcome="success")
    audit_events.forget()
    audit_trail.log_authn(outcome="failure")

    audit_events.one(event_type="authn.failure")
    assert len(audit_events) == 1


def test_a_logger_of_the_application_writes_into_the_same_trail(
    audit_trail: AuditLogger, audit_events: AuditEvents
) -> None:
    otel_audit.configure().log_authn(outcome="success")
    audit_trail.log_authn(outcome="failure")

    assert [event.timestamp for event in audit_events] == ["2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z"]
    assert audit_trail.settings is not None
    assert len(read_streams(audit_trail.settings.directory)) == 1


def test_a_logger_of_the_application_with_settings_of_its_own_is_seen_and_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with trail_for_test(tmp_path, monkeypatch) as audit:
        shop = otel_audit.configure(service_name="shop")
        audit.log_authn(outcome="success")
        shop.log_authn(outcome="failure")

        assert [event.event_id for event in AuditEvents.of(audit)] == [
            "019b76da-a800-7000-8000-000000000001",
            "019b76da-a800-7000-8000-000000000002",
        ]

    assert {segment.read_bytes().count(b"authn.") for segment in tmp_path.glob("*.jsonl")} == {1}
    assert list(tmp_path.glob("*.lock")) == []


@pytest.mark.parametrize("run", range(3))
def test_times_and_ids_are_the_same_in_each_run(run: int, audit_trail: AuditLogger, audit_events: AuditEvents) -> None:
    audit_trail.log_authn(outcome="success")
    with audit_trail.operation("job.cleanup"):
        """Nothing is done."""

    assert [(event.timestamp, event.request_id) for event in audit_events] == [
        ("2026-01-01T00:00:00.000Z", "00000000-0000-4000-8000-000000000001"),
        ("2026-01-01T00:00:00.000Z", "00000000-0000-4000-8000-000000000002"),
    ]
    assert [event.event_id for event in audit_events] == [
        "019b76da-a800-7000-8000-000000000001",
        "019b76da-a800-7000-8000-000000000002",
    ]


def test_nothing_is_delivered(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, otlp_server: object
) -> None:
    monkeypatch.setenv("OTEL_AUDIT_EXPORT", "otlp")

    audit: AuditLogger = request.getfixturevalue("audit_trail")
    audit.log_authn(outcome="success")

    assert audit.flush(timeout_s=30).complete
    assert getattr(otlp_server, "requests") == []  # noqa: B009


def test_the_trail_is_a_real_one(audit_trail: AuditLogger, tmp_path: Path) -> None:
    receipt = audit_trail.log_authn(outcome="success")

    assert receipt is not None
    assert receipt.durable
    (event,) = application_events(tmp_path / "audit")
    assert event["event_id"] == receipt.event_id


def test_the_events_of_another_logger_are_found(tmp_path: Path) -> None:
    with otel_audit.configure(directory=tmp_path, export="none", service_name="shop") as audit:
        audit.log_authn(outcome="failure")
        events = AuditEvents.of(audit)
        events.forget()
        audit.log_authn(outcome="success")

        events.one(event_type="authn.success")
        assert len(events) == 1


def test_a_logger_without_a_journal_has_no_events_to_look_at() -> None:
    with pytest.raises(TypeError, match=r"expected a logger of otel_audit\.configure\(\), got one without a journal"):
        AuditEvents.of(AuditLogger(StdoutAuditSink()))


@pytest.mark.processes
def test_a_forked_child_makes_ids_of_its_own(audit_trail: AuditLogger, audit_events: AuditEvents) -> None:
    audit_trail.log_authn(outcome="success")
    child = os.fork()
    if child == 0:
        audit_trail.log_authn(outcome="failure")
        os._exit(0)
    os.waitpid(child, 0)
    audit_trail.log_authn(outcome="success")

    assert len({event.event_id for event in audit_events}) == 3
