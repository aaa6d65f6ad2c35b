"""Lines that Feast writes with the standard library's logging, of both its schemas, are audit events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from otel_audit.event import AuditEvent, AuditPrincipal, as_event
from otel_audit.integrations.feast import event_of_line
from tests.integrations.logged import recorded

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")

ONLINE = {
    "event": "online_feature_request",
    "timestamp": "2026-03-01T10:00:00.123456+00:00",
    "requestor_id": "ann",
    "entity_keys": ["driver_id"],
    "entity_count": 2,
    "feature_views": ["driver_stats", "driver_city"],
    "feature_count": 5,
    "status": "error",
    "latency_ms": 12.34,
}
OFFLINE = {
    "event": "offline_feature_retrieval",
    "timestamp": "2026-03-01T10:00:00+00:00",
    "method": "to_arrow",
    "start_time": "2026-03-01T09:59:00+00:00",
    "end_time": "2026-03-01T10:00:00+00:00",
    "feature_views": ["driver_stats"],
    "feature_count": 2,
    "row_count": 1000,
    "status": "success",
    "duration_ms": 60000.0,
}


def test_a_line_of_feasts_audit_logger_is_the_event_in_it(tmp_path: Path) -> None:
    given = AuditEvent(
        event_type="http.request",
        timestamp="2026-03-01T10:00:00.123Z",
        request_id="r1",
        trace_id="0" * 31 + "1",
        span_id="0" * 15 + "2",
        principal=AuditPrincipal(username="ann"),
        outcome="success",
        duration_ms=1.5,
        detail="GET /x -> 200",
    )

    with tracer.start_as_current_span("another"):
        (event,) = recorded(tmp_path, lambda logger: logger.info(given.to_jsonl()), name="feast.audit")

    assert {**event, **json.loads(given.to_jsonl())} == event
    assert "attributes" not in event


def test_a_line_of_feasts_metrics_is_an_event_for_an_online_request(tmp_path: Path) -> None:
    (event,) = recorded(tmp_path, lambda logger: logger.info(json.dumps(ONLINE)), name="feast.audit")

    assert event["event_type"] == "feast.online_feature_request"
    assert event["timestamp"] == ONLINE["timestamp"]
    assert event["time_ns"] == 1_772_359_200_123_456_000
    assert event["principal"]["username"] == "ann"
    assert event["action"]["verb"] == "READ"
    assert event["resource"] == {
        "type": "FeatureView",
        "name": "driver_stats,driver_city",
        "actions": ["READ_ONLINE"],
    }
    assert (event["outcome"], event["duration_ms"]) == ("error", 12.34)
    assert event["attributes"] == {
        "feast.entity_keys": ["driver_id"],
        "feast.entity_count": 2,
        "feast.feature_views": ["driver_stats", "driver_city"],
        "feast.feature_count": 5,
    }


def test_a_line_of_feasts_metrics_is_an_event_for_an_offline_retrieval(tmp_path: Path) -> None:
    (event,) = recorded(tmp_path, lambda logger: logger.info(json.dumps(OFFLINE)), name="feast.audit")

    assert event["event_type"] == "feast.offline_feature_retrieval"
    assert event["principal"]["username"] == ""
    assert event["resource"]["actions"] == ["READ_OFFLINE"]
    assert (event["outcome"], event["duration_ms"]) == ("success", 60000.0)
    assert event["attributes"]["feast.method"] == "to_arrow"
    assert event["attributes"]["feast.row_count"] == 1000


def test_nobody_is_named_where_feast_says_anonymous() -> None:
    fields = event_of_line(json.dumps({**ONLINE, "requestor_id": "anonymous"}))

    assert fields is not None
    assert fields["principal"] == {"username": ""}


@pytest.mark.parametrize(
    "text",
    ["", "{", "{}", "[]", "plain", '{"event": "other"}', '{"event": ["x"]}', '{"event_type": 7}', '{"a":' * 100_000],
    ids=lambda text: text[:20],
)
def test_what_is_no_line_of_feast_on_its_logger_is_a_text(tmp_path: Path, text: str) -> None:
    (event,) = recorded(tmp_path, lambda logger: logger.info(text), name="feast.audit")

    assert event["event_type"] == "log.record"
    assert event["detail"][:20] == text[:20]


def test_a_text_of_another_logger_is_never_read_as_an_event(tmp_path: Path) -> None:
    forged = AuditEvent(event_type="authn.success", principal=AuditPrincipal(username="root")).to_jsonl()

    (event,) = recorded(tmp_path, lambda logger: logger.info("%s", forged))

    assert (event["event_type"], event["principal"]["username"], event["detail"]) == ("log.record", "", forged)


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda of: st.lists(of, max_size=2))


@settings(deadline=None)  # the first example pays for what is imported late, on a busy machine
@given(st.dictionaries(st.sampled_from([*ONLINE, *OFFLINE, "event_type", "principal"]), JSON))
def test_a_line_with_odd_values_is_an_event_or_none(line: dict[str, Any]) -> None:
    for kind in ({}, {"event": "online_feature_request"}, {"event_type": "x"}):
        fields = event_of_line(json.dumps({**line, **kind}))
        assert (fields is None) is (not kind and not isinstance(line.get("event_type"), str))
        if fields is not None:
            assert as_event(fields).event_type in ("feast.online_feature_request", "x", line.get("event_type"))
