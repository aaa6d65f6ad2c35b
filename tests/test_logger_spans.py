"""The span that an event belongs to: the active one, or the one that the caller says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from otel_audit.event import AuditEvent
from otel_audit.logger import AuditLogger
from tests.arguments import SPAN_ID, TRACE_ID, in_span
from tests.recording import event_of, recorder


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path) as logger:
        yield logger


def ids_of(event: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return event.get("trace_id"), event.get("span_id"), event.get("trace_flags")


def test_the_active_span_is_recorded_with_its_flags(audit: AuditLogger, tmp_path: Path) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("work") as span:
        receipts = [audit.log(AuditEvent(event_type="x")), audit.log_authn(outcome="success")]
    ids = span.get_span_context()

    assert ids.trace_flags.sampled
    for receipt in receipts:
        assert ids_of(event_of(tmp_path, receipt)) == (
            f"{ids.trace_id:032x}",
            f"{ids.span_id:016x}",
            int(ids.trace_flags),
        )


def test_a_span_that_is_not_sampled_is_recorded_too(audit: AuditLogger, tmp_path: Path) -> None:
    with TracerProvider(sampler=ALWAYS_OFF).get_tracer("t").start_as_current_span("work") as span:
        line = event_of(tmp_path, audit.log_authn(outcome="success"))
    ids = span.get_span_context()

    assert not ids.trace_flags.sampled
    assert ids_of(line) == (f"{ids.trace_id:032x}", f"{ids.span_id:016x}", int(ids.trace_flags))


def test_without_a_span_there_are_no_ids(audit: AuditLogger, tmp_path: Path) -> None:
    assert ids_of(event_of(tmp_path, audit.log_authn(outcome="success"))) == (None, None, None)


def test_a_span_that_is_not_valid_is_none(audit: AuditLogger, tmp_path: Path) -> None:
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(0, 7, False))):
        assert ids_of(event_of(tmp_path, audit.log(AuditEvent(event_type="x")))) == (None, None, None)


def test_a_context_that_is_passed_in_comes_before_the_active_span(audit: AuditLogger, tmp_path: Path) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("other"):
        receipts = [
            audit.log(AuditEvent(event_type="x"), context=in_span(flags=0)),
            audit.log_authz(outcome="deny", context=in_span(flags=0)),
        ]
        without = audit.log(AuditEvent(event_type="x"), context=Context())

    assert [ids_of(event_of(tmp_path, receipt)) for receipt in receipts] == [(TRACE_ID, SPAN_ID, 0)] * 2
    assert ids_of(event_of(tmp_path, without)) == (None, None, None)


def test_a_trace_id_that_is_set_already_is_kept_and_nothing_of_the_active_span_is_mixed_in(
    audit: AuditLogger, tmp_path: Path
) -> None:
    with TracerProvider().get_tracer("t").start_as_current_span("work"):
        line = event_of(tmp_path, audit.log(AuditEvent(event_type="x", trace_id="ab" * 16)))

    assert ids_of(line) == ("ab" * 16, None, None)
