"""Nothing is too large, nothing is too odd: the event is never lost."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import hashlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.errors import ConfigError
from otel_audit.event import AuditEvent
from otel_audit.redaction.caps import JOURNAL_BYTES, SHORTEST_CUT, Caps, cut_key, cut_text, marker_of, split_marker
from otel_audit.redaction.patterns import REDACTED
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.screen import MARGIN_CHARS
from tests.examples import examples


def cleaned_attribute(value: object) -> Any:
    event = Redactor().clean({"event_type": "a", "attributes": {"x": value}})
    msgspec.json.encode(event).decode()
    AuditEvent.model_validate(event)
    return event["attributes"]["x"]


def test_a_text_above_its_cap_ends_in_a_marker_that_identifies_the_whole() -> None:
    text = "a sentence. " * 500
    digest = hashlib.sha256(text.encode()).hexdigest()

    cleaned = Redactor().clean({"event_type": "a", "detail": text, "reason": text})

    assert cleaned["detail"].endswith(f"…[truncated, {len(text)} chars, sha256:{digest}]")
    assert len(cleaned["detail"]) == Caps().detail_chars
    assert len(cleaned["reason"]) == Caps().text_chars
    assert cleaned["truncated"] == ["$.detail", "$.reason"]
    assert "redacted" not in cleaned


def test_the_digest_of_a_cut_text_is_without_the_secrets_that_were_found_and_of_all_that_is_behind_the_cut() -> None:
    head, rest = "the password=hunter2 " + "was tried. " * 1000, "and " * 100_000
    left = (head + rest).replace("hunter2", REDACTED)

    detail = Redactor().clean({"event_type": "a", "detail": head + rest})["detail"]

    assert detail.startswith("the password=[REDACTED] was tried. ")
    assert split_marker(detail)[1] == marker_of(left)


@pytest.mark.parametrize(
    "secret", ["ghp_" + "a1" * 18, "eyJ" + "a1" * 600, "password=" + "a1" * 600, "://u:" + "a1" * 600]
)
@given(st.integers(-60, 700))
@examples(60)
def test_a_secret_over_the_border_of_what_is_looked_at_shows_no_part_of_itself(secret: str, before_end: int) -> None:
    caps = Caps()
    text = (
        ("of nine letters " * 400)[: caps.detail_chars + MARGIN_CHARS - before_end] + " " + secret + " and more" * 5000
    )

    detail = Redactor().clean({"event_type": "a", "detail": text})["detail"]

    assert "a1a1" not in split_marker(detail)[0]
    assert len(detail) > caps.detail_chars - MARGIN_CHARS - 120


@given(st.text(max_size=300), st.integers(SHORTEST_CUT, 300))
@examples(100)
def test_a_cut_text_is_within_its_cap_and_begins_as_before(text: str, chars: int) -> None:
    cut = cut_text(text, chars)

    body, marker = split_marker(cut)
    assert len(cut) <= chars
    assert text.startswith(body)
    assert bool(marker) == (len(text) > chars)


@given(st.text(st.sampled_from('a\x01\u200b\U0001f600" ='), max_size=200), st.integers(1, 60))
@examples(200)
def test_a_text_takes_at_most_twice_as_many_bytes_in_a_line_as_its_cap_has_characters(piece: str, times: int) -> None:
    event = Redactor().clean({"event_type": "a", "detail": piece * times, "reason": piece * times})

    assert len(msgspec.json.encode(event["detail"])) <= 2 * Caps().detail_chars + 2
    assert len(msgspec.json.encode(event["reason"])) <= 2 * Caps().text_chars + 2
    assert Redactor().clean(event) == event


@given(st.integers(0, 200))
@examples(100)
def test_no_redaction_is_cut_in_two(before: int) -> None:
    text = "x" * before + REDACTED + "y" * 300

    body, _ = split_marker(cut_text(text, 160))

    assert body.endswith(("x", "y", REDACTED)) or body == ""


@pytest.mark.parametrize(
    "tail",
    [
        "…[truncated, 12 chars, sha256:abc]",
        f"…[truncated, 12 chars, sha256:{'A' * 64}]",
        "…[truncated, x chars]",
        "]",
        "plain",
    ],
)
def test_what_is_not_exactly_a_marker_is_text(tail: str) -> None:
    assert split_marker("text" + tail) == ("text" + tail, "")


def test_long_keys_stay_different() -> None:
    one, two = "k" * 200 + "1", "k" * 200 + "2"

    cleaned = Redactor().clean({"event_type": "a", "attributes": {one: 1, two: 2}})

    assert cleaned["attributes"] == {cut_key(one, 128): 1, cut_key(two, 128): 2}
    assert {len(key) for key in cleaned["attributes"]} == {128}
    assert len(cleaned["truncated"]) == 2


def test_keys_that_become_the_same_are_both_kept() -> None:
    tokens = ["ghp_" + letter * 36 for letter in "ab"]

    cleaned = Redactor().clean({"event_type": "a", "attributes": {tokens[0]: 1, tokens[1]: 2}})

    assert cleaned["attributes"] == {REDACTED: 1, f"{REDACTED}#2": 2}


def test_too_many_attributes_and_items_are_cut_and_said() -> None:
    cleaned = Redactor().clean(
        {
            "event_type": "a",
            "principal": {"username": "u", "roles": [f"r{n}" for n in range(100)]},
            "attributes": {f"k{n}": n for n in range(100)},
        }
    )

    assert cleaned["principal"]["roles"] == [f"r{n}" for n in range(64)]
    assert cleaned["attributes"] == {f"k{n}": n for n in range(32)}
    assert cleaned["truncated"] == ["$.attributes", "$.principal.roles"]


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Word(str):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Silent:
    def __str__(self) -> str:
        raise RuntimeError("no")


class Liar:
    @property  # type: ignore[misc]  # a class that is not what it says
    def __class__(self) -> type:
        return str


class Broken(Mapping[str, int]):
    def __getitem__(self, key: str) -> NoReturn:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class Scalar:
    """A number as array libraries have it."""

    ndim, dtype = 0, "int64"

    def __init__(self, plain: object) -> None:
        self._plain = plain

    def item(self) -> object:
        return self if self._plain is None else self._plain

    def __str__(self) -> str:
        return "a scalar"


class Array(Scalar):
    """What has items has no plain value, and may be endless."""

    ndim = 1


def numpy_scalars() -> list[tuple[object, object]]:
    return [
        (numpy.int64(7), 7),
        (numpy.uint64(2**64 - 1), str(2**64 - 1)),
        (numpy.float32(0.5), 0.5),
        (numpy.float64("nan"), "NaN"),
        (numpy.bool_(True), True),
        (numpy.str_("x"), "x"),
        (numpy.array(3), 3),
        (numpy.array([1, 2]), "[1 2]"),
        (numpy.longdouble(0.5), "0.5"),
        (numpy.datetime64("2026-11-25"), "2026-11-25"),
    ]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *numpy_scalars(),
        (Scalar(7), 7),
        (Scalar(0.5), 0.5),
        (Scalar(float("inf")), "Infinity"),
        (Scalar(2**70), str(2**70)),
        (Scalar(None), "a scalar"),
        (Scalar(Silent()), "a scalar"),
        (Array(7), "a scalar"),
        (fractions.Fraction(1, 3), "1/3"),
        (decimal.Decimal("Infinity"), "Infinity"),
        (datetime.timedelta(seconds=90), "0:01:30"),
        (4111111111111111, REDACTED),
        ([1, 4111111111111111], [1, REDACTED]),
        (4111111111111111.0, REDACTED),
        (4111111111111112.0, 4111111111111112.0),
        (4111111111111112, 4111111111111112),
        (1795596031231887, 1795596031231887),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (2**63, "9223372036854775808"),
        (-(2**63), -(2**63)),
        (b"bytes\xff", "bytes\ufffd"),
        (bytearray(b"x"), "x"),
        (memoryview(b"x"), "x"),
        (decimal.Decimal("1.20"), "1.20"),
        (datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC), "2026-11-25T00:00:00+00:00"),
        (datetime.date(2026, 11, 25), "2026-11-25"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Word("w"), "w"),
        (("a", 1), ["a", 1]),
        ({"a"}, ["a"]),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "😀"),
        (Silent(), "[unreadable Silent]"),
        (Liar(), "[unreadable Liar]"),
        (Broken(), "[unreadable Broken]"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        ([1, [2], None], [1, "[2]", "null"]),
        ({"password": "x", "a": 1}, '{"password":"[REDACTED]","a":1}'),
    ],
    ids=lambda value: ascii(type(value).__name__),
)
def test_an_odd_attribute_becomes_one_of_the_model(value: object, written: object) -> None:
    assert cleaned_attribute(value) == written


def test_a_number_without_end_is_written_in_short() -> None:
    assert cleaned_attribute(10**6000).startswith("0x")
    assert len(cleaned_attribute(10**6000)) == Caps().text_chars


def test_an_attribute_that_is_none_is_left_out() -> None:
    assert Redactor().clean({"event_type": "a", "attributes": {"x": None, "y": 1}})["attributes"] == {"y": 1}


def test_a_value_that_holds_itself_ends() -> None:
    endless: list[object] = []
    endless.append(endless)

    assert "[too deep]" in cleaned_attribute([endless])[0]


def test_lists_that_are_shared_without_end_do_not_grow_without_end() -> None:
    value: list[object] = ["x"]
    for _ in range(5):
        value = [value] * 64

    assert len(msgspec.json.encode(Redactor().clean({"event_type": "a", "attributes": {"x": value}}))) < 64 * 1024


def test_no_duration_stays_no_number() -> None:
    cleaned = Redactor().clean({"event_type": "a", "duration_ms": float("nan")})

    assert msgspec.json.encode(cleaned) == b'{"event_type":"a","duration_ms":null}'


WIDE = ["x", "é", "😀", "\x00", '"', "\u2028"]
ODD_VALUES = st.recursive(
    st.sampled_from([Silent(), Liar(), Broken(), b"\xff", decimal.Decimal("NaN"), object(), float("nan"), "\udfff"])
    | st.text(max_size=20)
    | st.integers()
    | st.builds(lambda character, count: character * count, st.sampled_from(WIDE), st.integers(0, 9000)),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=5),
    max_leaves=25,
)
FIELDS = st.sampled_from(sorted(AuditEvent.model_fields))


@given(st.dictionaries(FIELDS | st.text() | st.integers(), ODD_VALUES, max_size=12))
@examples(150)
def test_no_value_makes_the_event_too_large_or_impossible_to_write(event: Any) -> None:
    caps = Caps(line_bytes=32 * 1024)

    cleaned = Redactor(caps=caps).clean(event)

    assert len(msgspec.json.encode(cleaned)) <= caps.event_bytes
    assert msgspec.json.encode(Redactor(caps=caps).clean(cleaned)) == msgspec.json.encode(cleaned)


def large_event(character: str) -> dict[str, Any]:
    """The largest event of the model's shape: every text and every list above its cap."""
    text, many = character * 5000, [f"{n}{character * 5000}" for n in range(70)]
    return {
        "event_type": text,
        "timestamp": text,
        "request_id": text,
        "principal": {"username": text, "roles": many, "auth_type": text, "on_behalf_of": text},
        "source": {"ip": text, "transport": text, "user_agent": text},
        "action": {"mcp_tool": text, "path": text, "verb": text, "method": text, "arguments_digest": text},
        "resource": {"type": text, "name": text, "actions": many},
        "outcome": text,
        "detail": text,
        "error_type": text,
        "reason": text,
        "policy_id": text,
        "parent_id": text,
        "attributes": {f"{character * 100}{n}": many for n in range(40)},
    }


@pytest.mark.parametrize("line_bytes", [32 * 1024, 64 * 1024])
@pytest.mark.parametrize("character", WIDE, ids=ascii)
def test_an_event_with_everything_too_large_keeps_its_shape(character: str, line_bytes: int) -> None:
    event = large_event(character)

    cleaned = Redactor(caps=Caps(line_bytes=line_bytes)).clean(event)

    assert len(msgspec.json.encode(cleaned)) <= line_bytes - JOURNAL_BYTES
    AuditEvent.model_validate(cleaned)
    assert [name for name in event if name not in cleaned] in ([], ["attributes"])
    assert len(cleaned["principal"]["roles"]) == 64
    assert "$.detail" in cleaned["truncated"]


def event_of_texts(**sizes: int) -> dict[str, Any]:
    return {
        "event_type": "a",
        "principal": {"username": "é" * sizes.get("username", 1), "roles": ["é" * 1800] * sizes.get("roles", 0)},
        "detail": "é" * sizes.get("detail", 1),
        "attributes": {f"k{n}": "é" * sizes.get("attribute", 1) for n in range(20)},
    }


@pytest.mark.parametrize(
    ("event", "shortened"),
    [
        (event_of_texts(attribute=1900, detail=4000, username=1900), "attributes"),
        (event_of_texts(roles=8, detail=4000), "detail"),
        (event_of_texts(roles=20), "principal"),
    ],
    ids=["attributes first", "then detail", "then the others"],
)
def test_what_matters_least_is_shortened_first(event: dict[str, Any], shortened: str) -> None:
    caps = Caps(line_bytes=32 * 1024)

    cleaned = Redactor(caps=caps).clean(event)

    assert {path.removeprefix("$.").partition(".")[0] for path in cleaned["truncated"]} == {shortened}
    # As much as fits is kept: one more character of each text would be too much.
    assert caps.event_bytes - 256 < len(msgspec.json.encode(cleaned)) <= caps.event_bytes


def test_the_longest_texts_are_shortened_and_the_short_ones_stay() -> None:
    event = event_of_texts(attribute=10)
    event["attributes"] |= {f"long{n}": "é" * 2000 for n in range(9)}

    cleaned = Redactor(caps=Caps(line_bytes=32 * 1024)).clean(event)

    assert cleaned["truncated"] == [f"$.attributes.long{n}" for n in range(9)]
    assert cleaned["attributes"]["k0"] == "é" * 10


def test_a_text_that_is_shortened_twice_is_still_identified_by_its_whole() -> None:
    texts = [f"{n}" + "é" * 2500 for n in range(30)]
    event = {"event_type": "a", "attributes": {f"k{n}": text for n, text in enumerate(texts)}}

    cleaned = Redactor(caps=Caps(line_bytes=32 * 1024)).clean(event)

    for text, cut in zip(texts, cleaned["attributes"].values(), strict=True):
        assert len(cut) < 1000
        assert cut_text(text, len(cut)) == cut


@pytest.mark.parametrize(
    ("cap", "value"), [("text_chars", 10), ("line_bytes", 1024), ("list_items", 1000), ("depth", True)]
)
def test_a_cap_outside_its_range_is_refused(cap: str, value: int) -> None:
    with pytest.raises(ConfigError, match=r"^Caps\.\w+: expected a whole number from \d+ to \d+, got"):
        Caps(**{cap: value})
