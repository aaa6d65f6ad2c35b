"""What may not leave the process does not, and nothing else is taken away."""

from __future__ import annotations

import copy
import itertools
import json
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.redaction.caps import Caps
from otel_audit.redaction.patterns import REDACTED
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.screen import standard_screen
from tests.cleaning import EVENTS, HOSTILE_EVENTS, ORDINARY_VALUES, all_texts_of, an_event, texts_of
from tests.examples import examples
from tests.secret_samples import planted

PLACES = [
    ("event_type",),
    ("request_id",),
    ("trace_id",),
    ("principal", "username"),
    ("principal", "roles", 1),
    ("principal", "on_behalf_of"),
    ("source", "user_agent"),
    ("action", "path"),
    ("action", "arguments_digest"),
    ("resource", "name"),
    ("outcome",),
    ("detail",),
    ("reason",),
    ("attributes", "note"),
    ("attributes", "many", 1),
    ("attributes", "nested", "deep", 0, "note"),
    ("redacted", 0),
    ("field_of_a_subclass",),
]
OWN_FIELDS = {name for name in AuditEvent.model_fields if name not in ("redacted", "truncated")}


def put(event: dict[str, Any], place: tuple[str | int, ...], text: str) -> None:
    """Set the text at the place; the lists and mappings on the way are made."""
    holder: Any = event
    for step, following in itertools.pairwise(place):
        if isinstance(step, int):
            holder.append({})
        else:
            holder.setdefault(step, [] if isinstance(following, int) else {})
        holder = holder[step]
    last = place[-1]
    if isinstance(last, int):
        holder[last : last + 1] = [text]
    else:
        holder[last] = text


@given(planted(), st.sampled_from(PLACES))
@examples(500)
def test_a_secret_anywhere_in_an_event_is_in_no_byte_of_the_result(
    case: tuple[str, str, str], place: tuple[str | int, ...]
) -> None:
    _, text, secret = case
    event = an_event()
    put(event, place, text)
    before = copy.deepcopy(event)

    cleaned = Redactor().clean(event)

    assert event == before
    assert_absent(secret, cleaned)
    assert REDACTED in msgspec.json.encode(cleaned).decode()


@given(planted())
@examples(100)
def test_a_secret_in_a_key_is_removed(case: tuple[str, str, str]) -> None:
    _, text, secret = case
    event = an_event()
    event["attributes"][text] = "x"

    assert_absent(secret, Redactor().clean(event))


def assert_absent(secret: str, event: dict[str, Any]) -> None:
    encoded = msgspec.json.encode(event).decode()
    assert secret not in encoded
    assert json.dumps(secret)[1:-1] not in encoded
    assert not [text for text in texts_of(event) if secret in text]


@given(planted(), st.integers(0, 150))
@examples(100)
def test_a_secret_that_a_cut_goes_through_leaves_no_part(case: tuple[str, str, str], distance: int) -> None:
    _, text, secret = case
    caps = Caps(text_chars=256)
    filler = ("lorem ipsum " * 30)[: caps.text_chars - distance]
    event = {"event_type": "a", "reason": filler + " " + text}

    cleaned = Redactor(caps=caps).clean(event)

    # The first half alone would not match any pattern.
    assert secret[: max(12, len(secret) // 2)] not in cleaned["reason"]
    assert len(cleaned["reason"]) <= caps.text_chars


def test_paths_say_where_something_was_removed() -> None:
    token = "ghp_" + "a" * 36
    event = an_event()
    event["principal"]["roles"][1] = token
    event["detail"] = f"login failed: Authorization: Bearer {token}, retry"
    event["attributes"] |= {"api_key": "x" * 8, "http.request.header.authorization": ["Digest x"], "list": ["a", token]}
    event["redacted"] = ["$.action.path"]

    cleaned = Redactor().clean(event)

    assert cleaned["redacted"] == [
        "$.action.path",
        "$.attributes.api_key",
        "$.attributes.http.request.header.authorization",
        "$.attributes.list[1]",
        "$.detail",
        "$.principal.roles[1]",
    ]
    assert cleaned["detail"] == "login failed: Authorization: Bearer [REDACTED], retry"
    assert cleaned["attributes"]["api_key"] == REDACTED
    assert cleaned["attributes"]["http.request.header.authorization"] == REDACTED
    assert cleaned["attributes"]["list"] == ["a", REDACTED]
    assert "truncated" not in cleaned


def test_the_lists_stand_where_the_model_has_them() -> None:
    event = an_event() | {"truncated": ["$.detail"], "field_of_a_subclass": 1}
    event["attributes"]["password"] = "x"

    cleaned = Redactor().clean(event)

    assert list(cleaned) == [*an_event(), "redacted", "truncated", "field_of_a_subclass"]
    assert cleaned["truncated"] == ["$.detail"]


def test_feasts_events_stay_as_they_are() -> None:
    events = [
        AuditEvent(event_type="http.request", timestamp="2026-11-25T03:43:00+00:00", request_id=str(uuid.uuid4())),
        AuditEvent(
            event_type="authz.decision",
            request_id="r",
            principal=AuditPrincipal(username="alice", roles=["a", "b"], auth_type="oidc"),
            source=AuditSource(ip="10.0.0.1", transport="http"),
            action=AuditAction(mcp_tool="get_online_features_get_online_features_post", path="/get-online-features"),
            resource=AuditResource(type="feature_view", name="driver_hourly_stats", actions=["READ_ONLINE"]),
            outcome="mcp_error",
            duration_ms=float("nan"),
            detail="GET /a/b?entity=1 -> 500",
        ),
    ]
    for event in events:
        fields = event.model_dump(exclude_none=True)

        cleaned = Redactor().clean(fields)

        assert cleaned == fields
        assert json.dumps(cleaned) == json.dumps(fields)  # the order of keys, too


@given(
    st.lists(ORDINARY_VALUES, min_size=1, max_size=4), st.sampled_from(["{}", "id {} done", "a={}", "GET {} -> 200"])
)
@examples(500)
def test_ids_hashes_times_addresses_and_paths_stay(values: list[str], sentence: str) -> None:
    assume(not any(value.isdecimal() and value[0] != "1" and len(value) > 12 for value in values))  # hex by chance
    text = sentence.format(" ".join(values))
    event = {"event_type": "a", "request_id": values[0], "detail": text, "attributes": {"value": text}}

    assert Redactor().clean(event) == event
    assert standard_screen().find(text.encode()) is None


@pytest.mark.parametrize(
    ("items", "left"),
    [
        (["mysql", "--password", "hunter2", "--opt"], ["mysql", "--password", REDACTED, "--opt"]),
        (["--password", 12345], ["--password", REDACTED]),
        (["--db_password", None, "a"], ["--db_password", REDACTED, "a"]),
        ([["--token", "a b"]], ['["--token","[REDACTED]"]']),
        ([f"-----BEGIN {'PRIVATE'} KEY-----", "MIIE", f"-----END {'PRIVATE'} KEY-----", "a"], [REDACTED] * 3 + ["a"]),
        ([f"-----BEGIN {'PRIVATE'} KEY-----\nMI\n-----END {'PRIVATE'} KEY-----", "a"], [REDACTED, "a"]),
        (["--password", "--verbose", "a"], ["--password", "--verbose", "a"]),
        (["--no-password", True, "--token"], ["--no-password", True, "--token"]),
        (["password", "email", "--tokens", "5"], ["password", "email", "--tokens", "5"]),
    ],
    ids=repr,
)
def test_a_secret_that_is_split_over_the_items_of_a_list_is_removed_too(items: list[Any], left: list[Any]) -> None:
    redactor, event = Redactor(), {"event_type": "a", "attributes": {"argv": items}}

    cleaned = redactor.clean(event)

    assert cleaned["attributes"]["argv"] == left
    assert redactor.clean(cleaned) == cleaned
    quick = redactor.is_clean(all_texts_of(event)) and redactor.attributes_are_clean({"argv": items})
    assert not quick or cleaned == event


@given(HOSTILE_EVENTS | EVENTS)
@examples(500)
def test_cleaning_again_changes_nothing(event: dict[str, Any]) -> None:
    redactor = Redactor(caps=Caps(text_chars=128, detail_chars=128, key_chars=32))

    once = redactor.clean(event)

    again = redactor.clean(once)
    assert msgspec.json.encode(again) == msgspec.json.encode(once)


@pytest.mark.slow
@given(HOSTILE_EVENTS)
@examples(300)
def test_any_json_value_anywhere_gives_an_event_that_can_be_written(event: dict[str, Any]) -> None:
    cleaned = Redactor().clean(event)

    line = msgspec.json.encode(cleaned)
    assert isinstance(msgspec.json.decode(line), dict)
    for name in OWN_FIELDS & event.keys():
        assert name in cleaned
