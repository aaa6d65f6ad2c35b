"""Nothing that a caller passes costs the event."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from otel_audit.event import AuditEvent, AuditPrincipal, Outcome
from otel_audit.logger import AuditLogger
from tests.chain_check import application_events
from tests.recording import event_of, line_of_receipt, recorder


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogger]:
    with recorder(tmp_path) as logger:
        yield logger


class Raising:
    """Every way to look at it raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not equal to anything")


class Text(str):
    """A text that cannot be asked anything."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not equal to anything")

    __hash__ = str.__hash__


class Fading:
    """A list that breaks off."""

    def __iter__(self) -> Iterator[str]:
        yield "a"
        raise RuntimeError("no more")


def ascii_type(value: object) -> str:
    return type(value).__name__


def endless() -> dict[str, Any]:
    holder: dict[str, Any] = {}
    holder["self"] = holder
    return holder


HOSTILE: list[Any] = [
    None,
    7,
    2**100,
    10**5000,
    float("nan"),
    float("inf"),
    b"\xff",
    "\ud800",
    "\ud800" * 3000,
    Text("text"),
    iter(Fading()),
    object(),
    Raising(),
    [Raising()],
    ["\ud800"],
    {"a": Raising()},
    endless(),
    [[[[[[[[1]]]]]]]],
    {1: 2},
    {"\ud800": "\ud800"},
    datetime(2026, 1, 1, tzinfo=UTC),
]
hostile = pytest.mark.parametrize("value", HOSTILE, ids=lambda value: type(value).__name__)


@hostile
@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    ("method", "required"),
    [
        ("log_mcp_call", {"tool_name": "t"}),
        ("log_http_request", {"method": "GET", "path": "/"}),
        ("log_authn", {"outcome": "success"}),
        ("log_authz", {"outcome": "success"}),
    ],
)
def test_a_hostile_argument_of_a_helper_does_not_cost_the_event(
    tmp_path: Path, method: str, required: dict[str, Any], value: Any, reads: bool
) -> None:
    names = [name for name in AuditLogger.__dict__[method].__kwdefaults__ if name != "context"]
    with recorder(tmp_path, log_successful_reads=reads) as audit:
        receipts = [getattr(audit, method)(**{**required, name: value}) for name in [*names, *required]]
        lines = [json.loads(line_of_receipt(tmp_path, receipt)) for receipt in receipts]

    assert len(application_events(tmp_path)) == len(lines) == len({line["event_id"] for line in lines})
    assert_are_of_the_model(lines)


@hostile
@pytest.mark.parametrize("reads", [True, False])
def test_a_hostile_value_assigned_to_a_field_does_not_cost_the_event(tmp_path: Path, value: Any, reads: bool) -> None:
    with recorder(tmp_path, log_successful_reads=reads) as audit:
        receipts = []
        for name in AuditEvent.model_fields:
            event = AuditEvent(event_type="http.request", outcome="success")
            setattr(event, name, value)
            receipts.append(audit.log(event))
        for part, name in [("principal", "roles"), ("resource", "actions"), ("action", "mcp_tool"), ("source", "ip")]:
            event = AuditEvent(event_type="http.request", outcome="success")
            setattr(getattr(event, part), name, value)
            receipts.append(audit.log(event))
        lines = [json.loads(line_of_receipt(tmp_path, receipt)) for receipt in receipts]

    assert len(application_events(tmp_path)) == len(lines)
    assert_are_of_the_model(lines)


def assert_are_of_the_model(lines: list[dict[str, Any]]) -> None:
    """Whoever reads a line finds the types that docs/schema.md says."""
    for line in lines:
        AuditEvent.model_validate(line)


@hostile
def test_a_hostile_attribute_does_not_cost_the_event(audit: AuditLogger, tmp_path: Path, value: Any) -> None:
    event = AuditEvent(event_type="x", attributes={"kept": 1})
    assert event.attributes is not None
    event.attributes["hostile"] = value

    line = event_of(tmp_path, audit.log(event))

    assert (line["event_type"], line["attributes"]["kept"]) == ("x", 1)


@hostile
def test_what_is_no_event_at_all_is_recorded_as_that(audit: AuditLogger, tmp_path: Path, value: Any) -> None:
    line = event_of(tmp_path, audit.log(value))

    assert line["event_type"] == "unknown"


def test_a_hostile_object_in_a_helper_leaves_the_other_facts(audit: AuditLogger, tmp_path: Path) -> None:
    bad: Any = Raising()

    line = event_of(tmp_path, audit.log_http_request(method=bad, path="/x", principal=AuditPrincipal(username="ann")))

    assert (line["principal"]["username"], line["action"]["path"]) == ("ann", "/x")


def test_an_event_without_a_field_that_the_model_has_is_recorded(audit: AuditLogger, tmp_path: Path) -> None:
    line = event_of(tmp_path, audit.log(AuditEvent.model_construct(outcome="denied")))

    assert (line["event_type"], line["outcome"]) == ("unknown", "denied")


@pytest.mark.parametrize("value", [7, "text", [1, 2], float("nan")], ids=str)
def test_attributes_that_are_no_mapping_are_kept_as_one(audit: AuditLogger, tmp_path: Path, value: Any) -> None:
    line = event_of(tmp_path, audit.log(AuditEvent.model_construct(event_type="x", attributes=value)))

    assert line["attributes"] == {"value": "NaN" if value != value else value}


class Word(enum.Enum):
    SUCCESS = "success"


@pytest.mark.parametrize("outcome", [Word.SUCCESS, Outcome.SUCCESS, Text("success")], ids=ascii_type)
def test_an_outcome_may_be_a_member_of_an_enum(audit: AuditLogger, tmp_path: Path, outcome: Any) -> None:
    line = event_of(tmp_path, audit.log_authn(outcome=outcome))

    assert (line["event_type"], line["outcome"]) == ("authn.success", "success")
