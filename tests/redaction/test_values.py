"""The value behind the name of a secret is removed: any name, written in any way, up to where the value ends."""

from __future__ import annotations

import asyncio
import html
import json
import random
import string
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from fastapi import Body, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr, ValidationError

from otel_audit.redaction.patterns import REDACTED
from otel_audit.redaction.redactor import Redactor
from otel_audit.redaction.screen import without_secrets
from otel_audit.redaction.values import Reading
from tests.examples import examples

_NAMES = (
    "password db_password clientSecret access_token api_key X-Api-Key passwd passphrase credentials Passwort Kennwort"
    " contrase\u00f1a contrasena mot_de_passe mdp senha \u043f\u0430\u0440\u043e\u043b\u044c \u5bc6\u7801"
    " \u30d1\u30b9\u30ef\u30fc\u30c9 \ube44\ubc00\ubc88\ud638 has\u0142o wachtwoord"
)
_SHORT_NAMES = "pw pass auth sid psk pin"

Write = Callable[[str, str], str]


def percent(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def numbered(text: str) -> str:
    return "".join(f"&#{ord(char)};" for char in text)


AS_KEYS: dict[str, Write] = {
    "JSON": lambda name, secret: json.dumps({"a": 1, name: secret, "b": "c"}, ensure_ascii=False),
    "JSON in ASCII": lambda name, secret: json.dumps({name: secret}),
    "JSON on lines": lambda name, secret: json.dumps({name: secret}, ensure_ascii=False, indent=2).replace(
        ": ", ":\n  "
    ),
    "JSON in JSON": lambda name, secret: json.dumps(json.dumps({name: secret}, ensure_ascii=False), ensure_ascii=False),
    "JSON, a list": lambda name, secret: json.dumps({name: [secret, secret]}, ensure_ascii=False),
    "JSON, an object": lambda name, secret: json.dumps({name: {"value": {"of": [secret]}}}, ensure_ascii=False),
    "JSON, cut": lambda name, secret: json.dumps({name: {"a": [1, secret]}}, ensure_ascii=False)[:-3],
    "JSON in a sentence": lambda name, secret: f"got {json.dumps({name: [secret]}, ensure_ascii=False)} from al",
    "Python": lambda name, secret: repr({"a": 1, name: secret}),
    "Python, a tuple": lambda name, secret: repr({name: ("x", secret)}),
    "Python, an object": lambda name, secret: repr({name: {"value": secret}}),
    "form": lambda name, secret: urlencode({"user": "al", name: secret}),
    "query": lambda name, secret: f"GET /login?{name}={secret}&next=home -> 200",
    "name in percents": lambda name, secret: f"{percent(name)}={secret}",
    "all in percents": lambda name, secret: percent(f"{name}={secret}"),
    "query in a query": lambda name, secret: f"next={quote(quote(f'/x?{name}={secret}', safe=''), safe='')}",
    "assignment": lambda name, secret: f"{name}={secret}",
    "assignment, quoted": lambda name, secret: f"{name}='{secret} and {secret}'",
    "keyword": lambda name, secret: f"login(user='al', {name.replace('-', '_')}='{secret}')",
    "HTML": lambda name, secret: html.escape(json.dumps({name: secret}, ensure_ascii=False)),
    "HTML, the sign": lambda name, secret: f"{name}&#61;{secret}",
    "HTML, the name": lambda name, secret: f"{numbered(name)}={secret}",
    "form part": lambda name, secret: f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{secret}\r\n--x--',
    "constructor": lambda name, secret: f"User(name='a', {name}=Password(value='{secret}'), a=1)",
    "Pydantic's": lambda name, secret: f"{name}={SecretStr(secret)!r} {name}=SecretStr('{secret}')",
}
AS_NAMES: dict[str, Write] = {
    "header": lambda name, secret: f"Host: a\r\n{name}: {secret}\r\nAccept: */*",
    "YAML": lambda name, secret: f"user: al\n{name}: {secret}\n",
    "YAML, the next line": lambda name, secret: f"{name}:\n  {secret}\nuser: al",
    "YAML, a list": lambda name, secret: f"{name}:\n  - {secret}\n  - {secret}\nuser: al",
    "YAML, a mapping": lambda name, secret: f"db:\n  {name}:\n    value: {secret}\n    other: {secret}\n  user: al",
    "CJK": lambda name, secret: f"{name}\uff1a{secret}",
    "XML": lambda name, secret: f"<{name}>{secret}</{name}>",
    "XML, CDATA": lambda name, secret: f"<{name}><![CDATA[{secret}<]]></{name}>",
    "wide letters": lambda name, secret: (
        f"{''.join(chr(ord(c) + 0xFEE0) if '!' <= c <= '~' else c for c in name)}={secret}"
    ),
    "soft hyphens": lambda name, secret: f"{name[:2]}\u00ad{name[2:]}={secret[:3]}\u200b{secret[3:]}",
    "colours": lambda name, secret: f"{name}\x1b[0m=\x1b[31m{secret}\x1b[0m",
}
WRITE = AS_KEYS | AS_NAMES
# The first and the last of each range that is left out when a text is read as a person sees it.
UNSEEN = (
    "\x01\x07\x0b\x0c\x0e\x1f\x7f\u00ad\u0300\u036f\u115f\u1160\u180b\u180e\u200b\u200f\u202a\u202e\u2060\u206f"
    "\u3164\ufe00\ufe0f\ufeff\uffa0\U000e0001\U000e01ef"
)


def a_secret(draw: random.Random) -> str:
    letters = draw.choices(string.ascii_letters + string.digits, k=draw.randrange(8, 24))
    return f"{draw.choice(string.ascii_letters)}{''.join(letters)}{draw.randrange(10)}k"


def assert_gone(secret: str, text: str) -> None:
    left = without_secrets(text)

    assert REDACTED in left, text
    pieces = [secret[at : at + 5] for at in range(len(secret) - 4)]
    for shown in (left, Reading(left.encode()).data.decode("utf-8", "replace")):
        assert not [piece for piece in pieces if piece in shown], (text, left)
    assert without_secrets(left) == left


@pytest.mark.parametrize("unseen", range(len(UNSEEN)), ids=[f"U+{ord(char):04X}" for char in UNSEEN])
def test_a_character_that_nobody_sees_hides_neither_a_name_nor_a_value(unseen: int) -> None:
    char, secret = UNSEEN[unseen], "gK4mTq9Zp2Lw7k"

    assert_gone(secret, f"pass{char}word={secret[:3]}{char}{secret[3:]}")
    assert Reading(f"a{char}b".encode()).data == b"ab"


@pytest.mark.parametrize("place", WRITE)
def test_the_value_behind_any_name_is_removed(place: str) -> None:
    draw = random.Random(place)
    for name in _NAMES.split() if place in AS_NAMES else f"{_NAMES} {_SHORT_NAMES}".split():
        for _ in range(3):
            secret = a_secret(draw)

            assert_gone(secret, WRITE[place](name, secret))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"password": ["S3", {"a": "S4]"}], "user": "al"}', '{"password": [REDACTED], "user": "al"}'),
        ('{"credentials": {"value": "S3"}, "user": "al"}', '{"credentials": [REDACTED], "user": "al"}'),
        ('{"password": ["S3"', '{"password": [REDACTED]'),
        ("User(password=Password(value='S3'), a=1)", "User(password=[REDACTED], a=1)"),
        ("passwords:\n  - s3k\n  - s4k\nuser: al", "passwords:\n[REDACTED]\nuser: al"),
        ('{"user": "al", "pin": 1234}', '{"user": "al", "pin": [REDACTED]}'),
        ('{"password": [], "token": {}, "secret": "", "pw": null}',) * 2,
        ("&quot;password&quot;: &quot;hunter2&quot;, a", "&quot;password&quot;: &quot;[REDACTED]&quot;, a"),
        ("x=%70assword%3Dhunter2%26user%3Dal", "x=%70assword%3D[REDACTED]%26user%3Dal"),
        ("client_secret: payments", "client_secret: [REDACTED]"),
        ("secret: 'payments-db'", "secret: '[REDACTED]'"),
        ("session=alice", "session=[REDACTED]"),
        ("session: 4f9a1c77b2", "session: [REDACTED]"),
        ("password: alice, Token: bob", "password: [REDACTED], Token: [REDACTED]"),
        ("Passwort: carol, senha: dave", "Passwort: [REDACTED], senha: [REDACTED]"),
        ("password=(see the user's guide) and more", "password=[REDACTED] and more"),
    ],
)  # fmt: skip
def test_only_the_value_is_removed(text: str, left: str) -> None:
    assert without_secrets(text) == left
    assert without_secrets(left) == left


def test_brackets_without_end_or_bound_take_what_is_left() -> None:
    for depth in (10, 100, 100_000):
        text = '{"token": ' + "[" * depth + '"hunter2"' + "]" * depth + ', "a": 1}'

        detail = Redactor().clean({"event_type": "a", "detail": text})["detail"]

        assert detail.startswith('{"token": [REDACTED]')
        assert "hunter2" not in detail


class Login(BaseModel):
    """A form as a service has it."""

    name: str = "al"
    password: Annotated[str, Field(max_length=4)]
    token: int = 0


class Account(BaseModel):
    """One that holds it."""

    logins: list[Login]


SECRET = "hJ7kQ2vX9zLmP4tR8wYb"


@pytest.mark.parametrize(
    "values",
    [
        {"password": SECRET},
        {"password": [SECRET]},
        {"password": "a", "token": SECRET},
        {"password": {"value": SECRET}},
        {"passwrd": SECRET},
        {"name": "a name that is so long that it is cut", "passwordd": SECRET},
    ],
    ids=repr,
)
def test_what_pydantic_says_of_a_wrong_value_does_not_show_it(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Account.model_validate({"logins": [values]})
    error = caught.value
    said = [str(error), repr(error), str(error.errors()), error.json(), " ".join(str(error).split()), repr(str(error))]

    for text in (*said, *(json.dumps({"detail": text}) for text in said)):
        cleaned = Redactor().clean({"event_type": "a", "detail": text})["detail"]

        assert SECRET[:8] not in cleaned
        assert SECRET[-8:] not in cleaned


def test_what_fastapi_answers_to_a_wrong_form_does_not_show_it() -> None:
    app = FastAPI()

    @app.post("/login")
    def login(password: Annotated[str, Body(max_length=4)], age: Annotated[int, Body()]) -> None: ...

    async def answer() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            return (await client.post("/login", json={"password": SECRET, "age": "old"})).text

    text = asyncio.run(answer())

    assert SECRET in text
    left = without_secrets(text)
    assert SECRET not in left
    assert '"input":"old"' in left


WRITTEN = st.lists(
    st.sampled_from(["a", "%41", "%2541", "&#65;", "&amp;#65;", "\\u0041", "\u200b", "\uff21", "\u0430", " ", "\u00e9"])
)


@given(WRITTEN, WRITTEN, WRITTEN)
@examples(200)
def test_a_part_of_a_reading_is_found_in_the_text_where_it_stands(
    before: list[str], part: list[str], after: list[str]
) -> None:
    first, middle, last = ("".join(pieces).encode() for pieces in (before, ["1", *part, "1"], after))
    whole, start, length = Reading(first + middle + last), len(Reading(first).data), len(Reading(middle).data)

    assert whole.spans_in_original([(start, start + length)]) == [(len(first), len(first) + len(middle))]
