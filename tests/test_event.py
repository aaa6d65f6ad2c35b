"""What an audit event is: Feast's fields first, ours after them, and no word is changed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from otel_audit.event import (
    AuditAction,
    AuditEvent,
    AuditPrincipal,
    AuditResource,
    AuditSource,
    Outcome,
    PrincipalKind,
    as_event,
    fields_of,
)
from otel_audit.event_schema import FIELDS

FEAST_FIELDS = [
    "event_type",
    "timestamp",
    "request_id",
    "trace_id",
    "span_id",
    "jsonrpc_id",
    "principal",
    "source",
    "action",
    "resource",
    "outcome",
    "duration_ms",
    "detail",
]

# As Feast 0.67 writes it. Not made by the code under test.
GOLDEN = (
    '{"event_type":"mcp.tools.call","timestamp":"2026-01-02T03:04:05.678Z","request_id":"r-1",'
    '"trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331","jsonrpc_id":"7",'
    '"principal":{"username":"ann","roles":["reader"],"auth_type":"oidc"},"source":{"ip":"","transport":"mcp-http"},'
    '"action":{"mcp_tool":"get_online_features","path":""},"resource":{"type":"","name":"","actions":[]},'
    '"outcome":"success","duration_ms":12.5,"detail":"ünï"}'
)


def str_of(value: object) -> str:
    return type(value).__name__


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def test_with_feasts_fields_alone_the_line_is_feasts_byte_for_byte() -> None:
    event = AuditEvent(
        event_type="mcp.tools.call",
        timestamp="2026-01-02T03:04:05.678Z",
        request_id="r-1",
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        jsonrpc_id="7",
        principal=AuditPrincipal(username="ann", roles=["reader"], auth_type="oidc"),
        source=AuditSource(transport="mcp-http"),
        action=AuditAction(mcp_tool="get_online_features"),
        outcome="success",
        duration_ms=12.5,
        detail="ünï",
    )

    assert event.to_jsonl() == GOLDEN
    assert AuditEvent.model_validate_json(GOLDEN) == event


def test_the_smallest_event_keeps_empty_texts_and_lists_and_leaves_none_out() -> None:
    assert AuditEvent(event_type="").to_jsonl() == (
        '{"event_type":"","timestamp":"","request_id":"","principal":{"username":"","roles":[],"auth_type":""},'
        '"source":{"ip":"","transport":""},"action":{"mcp_tool":"","path":""},'
        '"resource":{"type":"","name":"","actions":[]},"outcome":"","detail":""}'
    )


def test_the_names_of_the_fields_are_known_without_the_model() -> None:
    assert tuple(AuditEvent.model_fields) == FIELDS


def test_our_fields_come_after_feasts_and_are_optional() -> None:
    assert list(AuditEvent.model_fields)[: len(FEAST_FIELDS)] == FEAST_FIELDS
    assert all(
        not AuditEvent.model_fields[name].is_required() for name in AuditEvent.model_fields if name != "event_type"
    )


@given(texts, texts)
def test_event_type_and_outcome_are_stored_as_given(event_type: str, outcome: str) -> None:
    line = json.loads(AuditEvent(event_type=event_type, outcome=outcome).to_jsonl())

    assert (line["event_type"], line["outcome"]) == (event_type, outcome)


def test_the_parts_of_two_events_are_not_shared() -> None:
    first, second = AuditEvent(event_type="a"), AuditEvent(event_type="b")
    first.principal.roles.append("admin")
    first.resource.actions.append("WRITE")

    assert second.principal.roles == AuditPrincipal().roles == []
    assert second.resource.actions == AuditResource().actions == []


def test_a_kind_of_principal_is_one_of_three_words_or_none() -> None:
    assert AuditPrincipal(kind="service").kind is PrincipalKind.SERVICE  # type: ignore[arg-type]  # Pydantic converts
    assert AuditPrincipal(kind="robot").kind is None  # type: ignore[arg-type]  # what is under test


@pytest.mark.parametrize(
    ("given_attributes", "flat"),
    [
        ({"e": [{}]}, {"e": ["{}"]}),
        ({"a": {"b": 1}}, {"a": '{"b":1}'}),
        ({"a": [[1], None, "x"]}, {"a": ["[1]", "null", "x"]}),
        ({"a": None, "b": 1}, {"b": 1}),
        ({"a": datetime(2026, 1, 2, 3, 4, tzinfo=UTC)}, {"a": "2026-01-02T03:04:00+00:00"}),
        ({"a": UUID(int=5)}, {"a": "00000000-0000-0000-0000-000000000005"}),
        ({"a": b"x", "b": 1j}, {"a": "x", "b": "1j"}),
        ({"a": Decimal("1.5"), "b": []}, {"a": 1.5, "b": []}),
        ({"a": {1, 2}}, {"a": [1, 2]}),
        ({7: object}, {"7": "<class 'object'>"}),
        (["a", {}], {"value": ["a", "{}"]}),
        (5, {"value": 5}),
    ],
    ids=repr,
)
def test_attributes_of_any_kind_become_flat(given_attributes: Any, flat: dict[str, Any]) -> None:
    event = AuditEvent(event_type="x", attributes=given_attributes)

    assert event.attributes == flat
    assert AuditEvent.model_validate_json(event.to_jsonl()).attributes == flat


@pytest.mark.parametrize("model", [AuditEvent, AuditPrincipal, AuditSource, AuditAction, AuditResource])
def test_no_value_of_any_field_stops_an_event_from_being_built(model: type[BaseModel]) -> None:
    values = [
        Hostile(),
        RaisingModel(),
        {"a": Hostile()},
        [Hostile()],
        (1, None),
        {1},
        10**5000,
        b"\xff",
        1j,
        object,
        None,
    ]

    for name in model.model_fields:
        for value in values:
            built = model(**{"event_type": "kept", name: value})
            kept = getattr(built, name)
            assert name not in ("roles", "actions") or all(type(text) is str for text in kept)


def test_an_event_is_built_of_parts_of_another_library() -> None:
    class Principal(BaseModel):
        username: str

    assert AuditEvent(event_type="x", principal=Principal(username="ann")).principal.username == "ann"  # type: ignore[arg-type]  # what is under test


def test_only_an_event_without_a_type_is_refused() -> None:
    with pytest.raises(ValidationError, match="event_type"):
        AuditEvent()  # type: ignore[call-arg]  # what is under test
    assert AuditEvent(event_type=None).event_type == "unknown"  # type: ignore[arg-type]  # what is under test


def test_own_attributes_keep_their_types() -> None:
    given_attributes: dict[str, Any] = {"text": "1", "yes": True, "count": 1, "ratio": 1.0, "list": ["a", 1, True, 2.5]}
    event = AuditEvent(event_type="x", attributes=given_attributes)

    assert repr(AuditEvent.model_validate_json(event.to_jsonl()).attributes) == repr(given_attributes)


@pytest.mark.parametrize(
    ("word", "outcome"),
    [
        ("success", Outcome.SUCCESS),
        ("allow", Outcome.SUCCESS),
        ("failure", Outcome.FAILURE),
        ("denied", Outcome.DENIED),
        ("deny", Outcome.DENIED),
        ("error", Outcome.ERROR),
        ("mcp_error", Outcome.ERROR),
        ("cancelled", Outcome.CANCELLED),
        ("unknown", Outcome.UNKNOWN),
        ("", Outcome.UNKNOWN),
        ("Success", Outcome.UNKNOWN),
        ("ok", Outcome.UNKNOWN),
        (None, Outcome.UNKNOWN),
        (["success"], Outcome.UNKNOWN),
    ],
)
def test_each_stored_word_stands_for_one_outcome(word: object, outcome: Outcome) -> None:
    assert Outcome.of(word) is outcome


def test_no_word_but_the_known_ones_counts_as_a_success() -> None:
    assert [
        word for word in ("succes", "SUCCESS", "success ", "true", "200") if Outcome.of(word) is Outcome.SUCCESS
    ] == []


def test_an_event_of_ours_is_taken_as_it_is() -> None:
    event = AuditEvent(event_type="x")

    assert as_event(event) is event


def test_any_object_that_gives_its_fields_becomes_an_event() -> None:
    class Foreign:
        def model_dump(self) -> dict[str, Any]:
            return {"event_type": "x", "principal": {"username": "ann"}, "something": "else"}

    event = as_event(Foreign())

    assert (event.event_type, event.principal.username) == ("x", "ann")


@pytest.mark.parametrize(
    ("fields", "path", "kept"),
    [
        ({"request_id": 7}, "request_id", "7"),
        ({"request_id": b"abc"}, "request_id", "abc"),
        ({"detail": {"a": [1]}}, "detail", '{"a":[1]}'),
        ({"outcome": None}, "outcome", ""),
        ({"principal": {"username": 7}}, "principal.username", "7"),
        ({"principal": {"roles": ["a", 7]}}, "principal.roles", ["a", "7"]),
        ({"principal": {"roles": ["a", None]}}, "principal.roles", ["a", "null"]),
        ({"principal": {"roles": "admin"}}, "principal.roles", ["admin"]),
        ({"principal": {"roles": 7}}, "principal.roles", ["7"]),
        ({"principal": {"roles": None}}, "principal.roles", []),
        ({"principal": {"username": "ann", "kind": "robot"}}, "principal.username", "ann"),
        ({"principal": "ann"}, "principal.username", "ann"),
        ({"resource": ["table"]}, "resource.name", '["table"]'),
        ({"duration_ms": "soon"}, "duration_ms", None),
        ({"status_code": "many"}, "status_code", None),
        ({"attributes": {"a": {"b": 1}}, "detail": "kept"}, "detail", "kept"),
        ({"attributes": {"a": {"b": 1}}}, "attributes", {"a": {"b": 1}}),
        ({"attributes": {"a": 1}, "principal": "ann"}, "attributes", {"a": 1}),
        ({"event_type": 7}, "event_type", "7"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_becomes_text_or_its_default(fields: dict[str, Any], path: str, kept: Any) -> None:
    value: Any = as_event({"event_type": "x", **fields})
    for step in path.split("."):
        value = getattr(value, step)

    assert value == kept


def test_mending_leaves_the_given_fields_as_they_were() -> None:
    principal: dict[str, Any] = {"username": 7, "roles": ["a", 7]}
    given_fields: dict[str, Any] = {"event_type": "x", "principal": principal, "duration_ms": "soon"}

    as_event(given_fields)

    assert given_fields == {"event_type": "x", "principal": principal, "duration_ms": "soon"}
    assert principal == {"username": 7, "roles": ["a", 7]}


class Hostile:
    """Every way to look at it raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


class RaisingModel:
    def model_dump(self) -> dict[str, Any]:
        raise RuntimeError("no fields")


@pytest.mark.parametrize(
    "thing", [None, 7, "text", Hostile(), RaisingModel(), object()], ids=lambda x: type(x).__name__
)
def test_what_is_no_event_becomes_one_that_says_what_it_was(thing: Any) -> None:
    event = as_event(thing)

    assert (event.event_type, event.detail) == ("unknown", f"expected an event, got {type(thing).__name__}")


@pytest.mark.parametrize("name", [name for name in AuditEvent.model_fields if name != "event_type"])
@pytest.mark.parametrize(
    "value", [Hostile(), RaisingModel(), {"a": Hostile()}, [Hostile()], 10**5000, b"\xff"], ids=str_of
)
def test_a_hostile_value_costs_its_field_and_not_the_event(name: str, value: Any) -> None:
    of_fields = as_event({"event_type": "kept", name: value})
    event = AuditEvent(event_type="kept")
    setattr(event, name, value)
    of_model = as_event(event)

    assert of_fields.event_type == of_model.event_type == "kept"


def test_an_event_without_a_type_is_of_the_type_unknown() -> None:
    assert as_event({}).event_type == "unknown"


def test_the_fields_of_an_event_are_those_that_are_set_in_the_order_of_the_model() -> None:
    event = AuditEvent(event_type="x", reason="r", trace_id="t", event_id="e")

    names = list(fields_of(event))

    assert names == [name for name in AuditEvent.model_fields if name in names]
    assert {"reason", "trace_id", "event_id"} <= set(names)
    assert "span_id" not in names
