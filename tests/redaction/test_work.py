"""No text that anybody sends makes the screen work for long: the caps bound its work, whatever is in the text."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from typing import Any

import pytest

from otel_audit.redaction.caps import Caps
from otel_audit.redaction.patterns import PATTERNS, REDACTED
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.screen import MARGIN_CHARS, standard_screen, without_secrets
from tests.long_form import LONG
from tests.screen_work import Work, work_of

SEED = 20_261_128
TEXTS = 3000 if LONG else 200
# In the text that is looked at, its cap and a margin, some dozens of parts may look like secrets, and each pattern goes
# on from each of them. An ordinary text is read some ten times.
MOST_PASSES = 400
MOST_CALLS = 30_000

Event = dict[str, Any]
PLACES: dict[str, Callable[[str], Event]] = {
    "detail": lambda text: {"detail": text},
    "user agent": lambda text: {"source": {"user_agent": text}},
    "path": lambda text: {"action": {"path": text}},
    "role": lambda text: {"principal": {"username": "a", "roles": ["b", text]}},
    "name": lambda text: {"principal": {"username": text}},
    "id of a call": lambda text: {"jsonrpc_id": text},
    "generated id": lambda text: {"trace_id": text},
    "message of an exception": lambda text: {"attributes": {"exception.message": text}},
    "key of an attribute": lambda text: {"attributes": {text: 1}},
    "item of an attribute": lambda text: {"attributes": {"a": ["b", text]}},
    "value inside of an attribute": lambda text: {"attributes": {"a": {"b": [{"c": text}]}}},
    "key inside of an attribute": lambda text: {"attributes": {"a": {"b": [{text: 1}]}}},
    "value of a field of others": lambda text: {"theirs": {"a": [text]}},
    "key of a field of others": lambda text: {text: 1},
    "path that was removed before": lambda text: {"redacted": [text]},
}
_WORDS = r"""
    token:_ token=token_ password=a, password= pass= pass=a1_ ://a: ://a:b@ bearer_ bearer_a1b2c3d4_ {"password":
    [ [{"a": cookie:_x\n eyJeyJeyJeyJ. sk-a- sk-ant- 4111_1111_1111_1111_ 4111_ --password_ curl_-u_a: a+AStaaaaaQ=
    authorization:_digest_a= authorization:_a_ identified_by_'a'_ secret="\ name=token_value= <token> &amp; %25 %70
    &#97; \\u0041 &quot; "loc":_["token"]_"input": token:_( /reset/ [type=a,_input_value= token_is_ form-data;_name=x\n
    https://a1b2c3d4e5f6g7h8i9j0k1l2m3@ password:_|\n__ \n \0 key aA A _ -----
"""
_ZERO_WIDTH = "\u200b"
PIECES = [
    *(word.replace("_", " ").replace(r"\n", "\n").replace(r"\0", "\0") for word in _WORDS.split()),
    *(_ZERO_WIDTH, f"a{_ZERO_WIDTH}", f"{_ZERO_WIDTH}password=a ", f"a{_ZERO_WIDTH}pass=a1,"),
    *("\u00e9", "p\u0430", "\U0001f600", "token\u00a0: ", "a1" * 20 + "AZDO", f"-----BEGIN {'PRIVATE'} KEY-----\n"),
]


def screened(place: str, text: str) -> Work:
    redactor, event = Redactor(), {"event_type": "a", **PLACES[place](text)}
    return work_of(lambda: redactor.clean(event))


def assert_bounded(work: Work) -> None:
    assert work.screened_bytes <= MOST_PASSES * (Caps().detail_chars + MARGIN_CHARS)
    assert work.calls <= MOST_CALLS


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_text_of_a_megabyte_takes_no_more_than_one_of_its_cap(place: str) -> None:
    for piece in PIECES:
        long, longest = (screened(place, (piece * (chars // len(piece) + 1))[:chars]) for chars in (10_000, 1_000_000))

        assert_bounded(longest)
        # The marker is a digit longer, and where it is screened with a text that does not fit, that a little more.
        assert longest.screened_bytes <= long.screened_bytes * 1.01 + 64, piece
        assert longest.calls <= long.calls * 1.01 + 64, piece


def a_text(draw: random.Random, chars: int) -> str:
    """Made of what patterns are made of, so that it looks like many secrets at once."""
    words = draw.sample(WORDS, draw.choice((1, 2, 3, 10, 200)))
    text = ""
    while len(text) < chars:
        text += draw.choice(words) + draw.choice(("", "", "a1", " ", "\u200b", *string.punctuation))
    return text[:chars]


WORDS = sorted({*PIECES, *(word for each in PATTERNS for word in re.findall("[A-Za-z0-9_:/.$%=@ -]{2,}", each.regex))})


@pytest.mark.slow
def test_no_text_that_a_search_finds_takes_more() -> None:
    draw = random.Random(SEED)
    place = "detail"
    hardest: list[tuple[int, str]] = []
    for _ in range(TEXTS):
        text = a_text(draw, 5000)
        if hardest and draw.random() < 0.5:  # a change to one that was hard
            old, at = draw.choice(hardest)[1], draw.randrange(5000)
            text = (old[:at] + text[: draw.randrange(500)] + old[at:])[:5000]

        work = screened(place, text)

        assert_bounded(work)
        hardest = sorted([*hardest, (work.calls, text)], reverse=True)[:10]


@pytest.mark.slow
def test_thousands_of_texts_in_one_attribute_take_no_more_than_a_few_lines_do() -> None:
    for piece in PIECES:
        body = {f"{n}": [(piece * 300)[:2000]] * 40 for n in range(100)}

        work = screened_event({"attributes": {"body": body}})

        assert work.screened_bytes <= 40 * 4 * Caps().line_bytes, piece
        assert work.calls <= 400_000, piece


def screened_event(event: Event) -> Work:
    return work_of(lambda: Redactor().clean({"event_type": "a", **event}))


def test_a_text_of_many_secrets_is_removed_from_some_of_them_on() -> None:
    many = "\n".join(f"line {n} password: hunter{n}" for n in range(300))

    left = without_secrets(many)

    assert "hunter" not in left
    assert left.startswith("line 0 password: [REDACTED]\nline 1 password: [REDACTED]\n")
    assert left.endswith(REDACTED)
    assert without_secrets(left) == left
    assert standard_screen().without_secrets(many, most_parts=1000).count(REDACTED) == 300
