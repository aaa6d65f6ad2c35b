"""What the quick look calls clean is clean, and a typical event is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from otel_audit.redaction.caps import Caps
from otel_audit.redaction.redactor import Redactor
from tests.cleaning import EVENTS, all_texts_of, an_event
from tests.examples import examples
from tests.secret_samples import planted


@given(EVENTS)
@examples(500)
def test_clean_by_the_quick_look_means_that_nothing_would_change(event: dict[str, Any]) -> None:
    redactor = Redactor(caps=Caps(text_chars=128, list_items=16))

    if redactor.is_clean(all_texts_of(event)) and redactor.attributes_are_clean(event.get("attributes", {})):
        assert redactor.clean(event) == event


def test_a_typical_event_is_clean_by_the_quick_look() -> None:
    event = an_event()
    redactor = Redactor()

    assert redactor.is_clean(all_texts_of(event))
    assert redactor.attributes_are_clean(event["attributes"])
    assert redactor.clean(event) == event


@pytest.mark.parametrize(
    "attributes",
    [
        {"a": float("nan")},
        {"a": 2**63},
        {"a": None},
        {"a": {"b": 1}},
        {"a": [[1]]},
        {"a": (1, 2)},
        {"a": b"x"},
        {"k" * 129: 1},
        {1: 1},
        {"a": ["x"] * 65},
        {f"a{n}": 1 for n in range(33)},
        [("a", 1)],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_attributes_that_need_work_are_not_clean_by_the_quick_look(attributes: Any) -> None:
    assert not Redactor().attributes_are_clean(attributes)
    assert Redactor().clean({"event_type": "a", "attributes": attributes}) != {
        "event_type": "a",
        "attributes": attributes,
    }


@given(planted())
@examples(100)
def test_no_secret_is_clean_by_the_quick_look(case: tuple[str, str, str]) -> None:
    event = an_event() | {"detail": case[1]}

    assert not Redactor().is_clean(all_texts_of(event))


def test_a_list_with_too_many_items_is_not_clean_by_the_quick_look() -> None:
    event = an_event()
    event["principal"]["roles"] = ["r"] * 65

    assert not Redactor().is_clean(all_texts_of(event))
    assert Redactor().is_clean(["r"] * 64)


def test_a_lone_surrogate_is_not_clean_by_the_quick_look() -> None:
    assert not Redactor().is_clean(["a\ud800b"])
