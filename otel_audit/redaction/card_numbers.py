"""Numbers of payment cards: an issuer's prefix, its length, the usual grouping and the check digit.

All four must fit. One in ten numbers has a right check digit by chance, so that it alone would take ids and times away;
19 digits of a Visa card are told from the ids of 64 bits by their grouping only, and 13 are no card's any more.
"""

from __future__ import annotations

import re
from typing import Final

import re2

__all__ = ["CARD_NUMBER", "is_card_integer", "is_card_number"]

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
    """Whether the digits, grouped by one kind of separator, are a number that a card may have."""
    plain = value.replace(b"%20", b" ").replace("\u00a0".encode(), b" ")
    if len(set(_SEPARATORS.findall(plain))) > 1:
        return False
    return _is_card(_SEPARATORS.sub(b"", plain).decode())


def is_card_integer(value: float) -> bool:
    """Whether the number, written out, is one that a card may have. A table may have made a float of it."""
    return _LOWEST <= value <= _HIGHEST and value == int(value) and _is_card(str(int(value)))


def _is_card(digits: str) -> bool:
    return _ISSUERS.fullmatch(digits) is not None and _has_right_check_digit(digits)


def _has_right_check_digit(digits: str) -> bool:
    """Source: ISO/IEC 7812-1, annex B (Luhn)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0
