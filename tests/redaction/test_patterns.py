"""Each pattern of a secret finds what it describes, in any text, and takes nothing else of it away."""

from __future__ import annotations

import re
import string
import time

import pytest
import re2
from hypothesis import assume, given
from hypothesis import strategies as st

from otel_audit.redaction.formats import FORMATS, TokenFormat
from otel_audit.redaction.patterns import PATTERNS, REDACTED, SecretPattern
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.screen import standard_screen, without_secrets
from otel_audit.redaction.values import HINT
from tests.examples import examples
from tests.secret_samples import SAMPLES, TOKENS, Sample, planted


def test_every_pattern_has_samples() -> None:
    assert set(SAMPLES) == {pattern.name for pattern in PATTERNS}


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.service)
@given(data=st.data())
@examples(5)
def test_each_row_of_the_table_of_formats_is_the_one_that_finds_its_samples(
    row: TokenFormat, data: st.DataObject
) -> None:
    for sample in TOKENS[row.service]:
        secret = data.draw(sample.secret)
        match = re2.search(row.regex, f"{sample.before}{secret}{sample.after}")

        assert match is not None
        found = next((group for group in match.groups() if group), match[0])
        assert found in secret  # of some the head says enough
        assert secret not in without_secrets(f"got {sample.before}{secret}{sample.after}, and left")


def test_every_row_of_the_table_of_formats_says_where_it_is_from() -> None:
    assert list(TOKENS) == [row.service for row in FORMATS]
    assert all(row.source for row in FORMATS)


@pytest.mark.parametrize(
    ("name", "sample"),
    [pytest.param(name, each, id=f"{name}-{at}") for name, all_of in SAMPLES.items() for at, each in enumerate(all_of)],
)
@given(data=st.data())
@examples(10)
def test_each_pattern_itself_finds_its_samples(name: str, sample: Sample, data: st.DataObject) -> None:
    pattern = next(pattern for pattern in PATTERNS if pattern.name == name)
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1

    text = f"{sample.before}{data.draw(sample.secret)}{sample.after}".encode()

    assert re2.search(pattern.regex.encode(), text, options) is not None
    assert re2.search(pattern.sign.encode(), text, options) is not None
    assert standard_screen().find(text) is not None


@given(planted())
@examples(500)
def test_only_the_secret_part_of_a_text_is_replaced(case: tuple[str, str, str]) -> None:
    _, text, secret = case

    cleaned = without_secrets(text)

    assert secret not in cleaned
    start = text.index(secret)
    assert cleaned.startswith(text[:start].rpartition(" ")[0])
    assert REDACTED in cleaned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("password=a1,b2,user=alice", "password=[REDACTED],user=alice"),
        ("password=h2, user=x", "password=[REDACTED], user=x"),
        ("token=[REDACTED]tail", "token=[REDACTED]"),
        ("token: Bearer abcdef1", "token: Bearer [REDACTED]"),
        ("token: password: hunter2", "token: password: [REDACTED]"),
        ('"password":"a\\"b", "x":1', '"password":"[REDACTED]", "x":1'),
        ("postgres://u:p@ss@host/db?to=a@b", "postgres://u:[REDACTED]@host/db?to=a@b"),
        ("cookie: a=b; c=d\nHost: x", "cookie: [REDACTED]\nHost: x"),
    ],
)
def test_what_surrounds_a_secret_stays(text: str, cleaned: str) -> None:
    assert without_secrets(text) == cleaned


@given(st.text(string.printable, max_size=300))
@examples(300)
def test_the_set_of_all_patterns_sees_what_each_pattern_sees(text: str) -> None:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    data = text.encode()

    def has(regex: str) -> bool:
        return re2.search(regex.encode(), data, options) is not None

    is_hidden = re2.search(HINT, data, options) is not None
    found = standard_screen().find(data) is not None

    assert found == (is_hidden or any(has(pattern.sign or pattern.regex) for pattern in PATTERNS))
    assert all(has(pattern.sign) for pattern in PATTERNS if pattern.sign and has(pattern.regex))


@pytest.mark.parametrize(
    "piece",
    [
        *["password=", "token=token ", "://a:", "eyJ" * 4 + ".", "bearer ", "-" * 5, 'secret="\\', "sk-ant-"],
        *["pass=", "sk-a-", "authorization: digest a=", "--password ", "curl -u a:", "4111 ", "a+AStaaaaaQ="],
    ],
    ids=repr,
)
def test_a_hostile_text_settles_in_time(piece: str) -> None:
    text = piece * (200_000 // len(piece))

    started_s = time.process_time()
    cleaned = without_secrets(text)

    assert time.process_time() - started_s < 10  # the square of its length would be minutes
    assert without_secrets(cleaned) == cleaned


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("gh\u200bp_" + "a1" * 18 + " is it", "[REDACTED] is it"),
        ("pass\u00adword=hunter2 \u200f!", "pass\u00adword=[REDACTED] \u200f!"),
        ("x\u200bglpat-" + "a1" * 10, "x\u200b[REDACTED]"),
        ("Bearer " + "a1" * 10 + "\u00ad" + "b2" * 10 + "\u00ad", "Bearer [REDACTED]\u00ad"),
        ("cards 4111\u00a01111\u00a01111\u00a01111 and 3782 822463 10005", "cards [REDACTED] and [REDACTED]"),
        ("card=4111%201111%201111%201111", "card=[REDACTED]"),
        ("password\uff1ahunter2", "password\uff1a[REDACTED]"),
        ("token\u00a0=\u00a0hunter2x", "token\u00a0=\u00a0[REDACTED]"),
        ("a 👩\u200d💻 knows password=hunter2", "a 👩\u200d💻 knows password=[REDACTED]"),
    ],
)
def test_a_secret_that_is_split_or_spaced_as_pages_do_is_removed_too(text: str, left: str) -> None:
    assert without_secrets(text) == left
    assert without_secrets(left) == left


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
@given(data=st.data())
@examples(15)
def test_what_a_pattern_describes_is_removed_whatever_it_is(pattern: SecretPattern, data: st.DataObject) -> None:
    described = re.compile(pattern.regex.replace(r"\z", r"\Z"), re.ASCII)
    text = data.draw(
        st.from_regex(described, alphabet=st.characters(codec="ascii", exclude_characters="\v"))
    )  # RE2 counts it as no white space
    match = described.search(text)
    assert match is not None
    group = next((number for number, group in enumerate(match.groups(), 1) if group is not None), 0)
    secret = match[group]
    assume(len(secret) > 7 and text.count(secret) == 1)
    assume(pattern.secret_in(text.encode(), match.start(), *match.span(group)) is not None)

    cleaned = Redactor().clean({"event_type": "a", "detail": text})

    assert secret not in cleaned["detail"].replace(REDACTED, "")
    assert cleaned["redacted"] == ["$.detail"]
