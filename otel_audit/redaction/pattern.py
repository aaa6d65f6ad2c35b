"""Describe one kind of secret in a text, and tell it from what only looks like one.

A matched part may be an ordinary word ("token: expired"), a mask or a piece of code. The number of a payment card must
have the prefix of an issuer, its length, the usual grouping and the right check digit. One number in ten has a right
check digit by chance, so that digit alone would remove ids and times. A Visa number of 19 digits looks like an id of
64 bits unless it is grouped, and no card has 13 digits any more.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import re2

__all__ = [
    "CARD_NUMBER",
    "REDACTED",
    "SecretPattern",
    "has_a_digit",
    "is_basic_credential",
    "is_card_integer",
    "is_card_number",
    "is_generated",
    "is_not_ordinary",
    "is_opaque",
    "is_random",
]


REDACTED: Final = "[REDACTED]"
_REDACTED: Final = REDACTED.encode()

# Words that follow "token:" or "Bearer" in ordinary messages ("token: expired", "Bearer authentication failed"), in
# names of resources and rights ("token:create") and in code ("password: str").
_ORDINARY: Final = frozenset(
    b"""a accepted active all amd64 an and any allowed apikey arm64 auth authentication authorization await basic
    bearer bool bytes cannot challenge changed closed create created credential credentials declined delete denied
    digest disabled empty enabled ended error expected expired failed failure false flow for found get granted has
    header i386 idle in incorrect int invalid invalidated is issue issued key list malformed manage mismatch
    missing must negotiate new nil no none not null ok open opened or password present provided read realm refresh
    refreshed rejected renewed required reset revoke revoked role rotate rotated scheme scope secret sent should
    started str success the token tokens true undefined unknown unset update updated use used user valid verified
    was with write wrong yes""".split()
)
# What stands for a secret and is none: a mask, and the sign after which YAML has a text of several lines.
_PLACEHOLDER: Final = re.compile(rb"\*+|[|>][-+0-9]{0,2}")
# Code on a line of a traceback: `token = self._token`, `secret = get_secret(name)`. No digit, no capital.
_CODE: Final = re.compile(
    rb"(?:self|cls|os|settings|config|request|args|kwargs|options)\.[a-z_.]+[(\[]?|[a-z_]{3,}(?:\.[a-z_]+)*\([a-z_.]*\)?"
)


# A name that somebody chose: `Version2`, `argon2id`.
_WORD_WITH_A_NUMBER: Final = re.compile(rb"[A-Za-z][a-z]+[0-9]{1,4}[a-z]{0,2}")
_CASES: Final = (re.compile(rb"[a-z]"), re.compile(rb"[A-Z]"), re.compile(rb"[0-9]"))


def is_not_ordinary(value: bytes) -> bool:
    """Return whether it is no word of an ordinary message, no mask and no code."""
    if value == _REDACTED or value.strip(b"[]{}()<>.,:;!?=").lower() in _ORDINARY:
        return False
    return _PLACEHOLDER.fullmatch(value) is None and _CODE.fullmatch(value) is None


def is_basic_credential(value: bytes) -> bool:
    """Return whether it decodes to `user:password`, or is too long for a word. Source: RFC 7617, section 2."""
    if not is_not_ordinary(value):
        return False
    digits = value.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    whole = digits + b"A" * (-len(digits) % 4)
    return len(value) >= 20 or b":" in base64.b64decode(whole)


_LETTER, _DIGIT = re.compile(rb"[A-Za-z]"), re.compile(rb"[0-9]")
_HEX_OR_UUID = re.compile(rb"[0-9a-fA-F-]+")
_CONSTANT = re.compile(rb"[A-Z]+(?:[_-][A-Z]+)+[_-]?[0-9]{0,6}")


def has_a_digit(value: bytes) -> bool:
    """Return whether it is no plain word: what was made at random has a digit somewhere."""
    return is_not_ordinary(value) and _DIGIT.search(value) is not None


def is_random(value: bytes) -> bool:
    """Return whether it has a digit and is not the name of an error: `ERR_TOO_MANY_REQUESTS_429`."""
    return has_a_digit(value) and _CONSTANT.fullmatch(value) is None


def is_generated(value: bytes) -> bool:
    """Return whether it has small and large letters and digits, and is no word with a number."""
    return all(case.search(value) for case in _CASES) and _WORD_WITH_A_NUMBER.fullmatch(value) is None


def is_opaque(value: bytes) -> bool:
    """Return whether it is no word, number or id in hex: a `key` may be any of these and no secret."""
    return has_a_digit(value) and _LETTER.search(value) is not None and _HEX_OR_UUID.fullmatch(value) is None


@dataclass(frozen=True, slots=True)
class SecretPattern:
    """One kind of secret in a text. The groups of `regex` are the secret part; without groups it is the whole match.

    `source`: where the format is documented. `is_secret` has the last word on a matched part. `sign`: what every match
    of `regex` has in it; it is looked for first, where a match may begin at any letter. `part`, where there is one,
    takes the place of `is_secret`: it is given the text, where the match begins, and from where to where the matched
    part goes, and says from where to where the secret goes, or None.
    """

    name: str
    regex: str
    source: str
    is_secret: Callable[[bytes], bool] = is_not_ordinary
    sign: str = ""
    part: Callable[[bytes, int, int, int], tuple[int, int] | None] | None = None

    def secret_in(self, text: bytes, at: int, start: int, stop: int) -> tuple[int, int] | None:
        """Return where the secret is in a text of which `start` to `stop` was matched; None where there is none."""
        if self.part is not None:
            return self.part(text, at, start, stop)
        return (start, stop) if self.is_secret(text[start:stop]) else None


# A plus is a blank in a form; the others are blanks and hyphens of typography.
_BLANK: Final = "(?:[ .+\\t-]|%20|\u00a0|\u2009|\u202f|\u2010|\u2011|\u2013)"

# In front stands no part of a longer number, word or fraction; behind it neither.
CARD_NUMBER: Final = (
    r"(?:\A|[^0-9A-Za-z.+_-]|[^0-9A-Za-z][.-])"
    rf"([2-6][0-9]{{3}}(?:{_BLANK}[0-9]{{4}}){{3}}(?:{_BLANK}[0-9]{{3}})?"
    rf"|3[0-9]{{3}}{_BLANK}[0-9]{{6}}{_BLANK}[0-9]{{4,5}}"
    r"|3[0-9]{13,14}|[2-6][0-9]{15}|62[0-9]{17})"
    r"(?:\.0+)?(?:\z|[^0-9A-Za-z._-]|[._-](?:\z|[^0-9A-Za-z]))"
)

# Source: ISO/IEC 7812 issuer identification numbers, as the networks publish them: Visa; Mastercard; American Express;
# Diners Club; JCB; Discover; UnionPay; Maestro; Mir.
_ISSUERS: Final = re2.compile(
    r"(?:4[0-9]{15}(?:[0-9]{3})?"
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    r"|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11}|35(?:2[89]|[3-8][0-9])[0-9]{12}"
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12}|62[0-9]{14}(?:[0-9]{3})?"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{12}|220[0-4][0-9]{12})"
)
_LOWEST, _HIGHEST = 10**13, 10**16 - 1  # of the numbers that are not told by their grouping
_SEPARATORS: Final = re.compile(rb"[^0-9]+")


def is_card_number(value: bytes) -> bool:
    """Return whether the digits, grouped by one kind of separator, are a number that a card may have."""
    plain = value.replace(b"%20", b" ").replace("\u00a0".encode(), b" ")
    if len(set(_SEPARATORS.findall(plain))) > 1:
        return False
    return _is_card(_SEPARATORS.sub(b"", plain).decode())


def is_card_integer(value: float) -> bool:
    """Return whether the number, written out, is one that a card may have. A table may have made a float of it."""
    return _LOWEST <= value <= _HIGHEST and value == int(value) and _is_card(str(int(value)))


def _is_card(digits: str) -> bool:
    return _ISSUERS.fullmatch(digits) is not None and _has_right_check_digit(digits)


def _has_right_check_digit(digits: str) -> bool:
    """Source: ISO/IEC 7812-1, annex B (Luhn)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0
