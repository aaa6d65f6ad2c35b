"""Tell a secret from something that only looks like one, and find its end in a text that a person would read.

A matched part may be an ordinary word ("token: expired"), a mask or a piece of code. The number of a payment card must
have the prefix of an issuer, its length, the usual grouping and the right check digit. One number in ten has a right
check digit by chance, so that digit alone would remove ids and times. A Visa number of 19 digits looks like an id of 64
bits unless it is grouped, and no card has 13 digits any more.

A secret may be in a text that was encoded for a URL, for HTML or as a JSON string, or that was copied from a page with
invisible characters. `Reading` decodes such a text, and maps the parts found in it back to the original.
"""

from __future__ import annotations

import base64
import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Final

import msgspec
import re2

__all__ = [
    "CARD_NUMBER",
    "HINT",
    "REDACTED",
    "Reading",
    "SecretPattern",
    "Span",
    "block",
    "has_a_digit",
    "is_basic_credential",
    "is_card_integer",
    "is_card_number",
    "is_generated",
    "is_not_ordinary",
    "is_opaque",
    "is_random",
    "link_secret",
    "named_value",
    "short_named_value",
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
# Placeholders for a secret: a mask, or the sign after which YAML has a text of several lines.
_PLACEHOLDER: Final = re.compile(rb"\*+|[|>][-+0-9]{0,2}")
# Code on a line of a traceback: `token = self._token`, `secret = get_secret(name)`. No digit, no capital.
_CODE: Final = re.compile(
    rb"(?:self|cls|os|settings|config|request|args|kwargs|options)\.[a-z_.]+[(\[]?|[a-z_]{3,}(?:\.[a-z_]+)*\([a-z_.]*\)?"
)


# A name that somebody chose: `Version2`, `argon2id`.
_WORD_WITH_A_NUMBER: Final = re.compile(rb"[A-Za-z][a-z]+[0-9]{1,4}[a-z]{0,2}")
_CASES: Final = (re.compile(rb"[a-z]"), re.compile(rb"[A-Z]"), re.compile(rb"[0-9]"))


def is_not_ordinary(value: bytes) -> bool:
    """Return True unless it is a word of ordinary messages, a mask or code."""
    if value == _REDACTED or value.strip(b"[]{}()<>.,:;!?=").lower() in _ORDINARY:
        return False
    return _PLACEHOLDER.fullmatch(value) is None and _CODE.fullmatch(value) is None


def is_basic_credential(value: bytes) -> bool:
    """Return True if it decodes to `user:password`, or is too long for a word. Source: RFC 7617, section 2."""
    if not is_not_ordinary(value):
        return False
    digits = value.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    whole = digits + b"A" * (-len(digits) % 4)
    return len(value) >= 20 or b":" in base64.b64decode(whole)


_LETTER, _DIGIT = re.compile(rb"[A-Za-z]"), re.compile(rb"[0-9]")
_HEX_OR_UUID = re.compile(rb"[0-9a-fA-F-]+")
_CONSTANT = re.compile(rb"[A-Z]+(?:[_-][A-Z]+)+[_-]?[0-9]{0,6}")


def has_a_digit(value: bytes) -> bool:
    """Return True unless it is a plain word, since random text has a digit somewhere."""
    return is_not_ordinary(value) and _DIGIT.search(value) is not None


def is_random(value: bytes) -> bool:
    """Return True if it has a digit and is not the name of an error, such as `ERR_TOO_MANY_REQUESTS_429`."""
    return has_a_digit(value) and _CONSTANT.fullmatch(value) is None


def is_generated(value: bytes) -> bool:
    """Return True if it has small and capital letters and digits, and is not a word with a number."""
    return all(case.search(value) for case in _CASES) and _WORD_WITH_A_NUMBER.fullmatch(value) is None


def is_opaque(value: bytes) -> bool:
    """Return True unless it is a word, a number or an id in hex: a `key` may be any of these without being a secret."""
    return has_a_digit(value) and _LETTER.search(value) is not None and _HEX_OR_UUID.fullmatch(value) is None


class SecretPattern(msgspec.Struct, frozen=True):
    """One kind of secret in a text. The groups of `regex` are the secret part; without groups, the whole match is.

    `source` is the place where the format is documented. `is_secret` decides on a matched part. `sign` is contained in
    every match of `regex`, and is searched for first if a match may begin at any letter. `part`, if given, replaces
    `is_secret`: it gets the text, the start of the match and the span of the matched part, and returns the span of the
    secret or None.
    """

    name: str
    regex: str
    source: str
    is_secret: Callable[[bytes], bool] = is_not_ordinary
    sign: str = ""
    part: Callable[[bytes, int, int, int], tuple[int, int] | None] | None = None

    def secret_in(self, text: bytes, at: int, start: int, stop: int) -> tuple[int, int] | None:
        """Return the span of the secret in a text whose part from `start` to `stop` matched. None if there is none."""
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
    """Return True if the digits, grouped by one kind of separator, are a possible card number."""
    plain = value.replace(b"%20", b" ").replace("\u00a0".encode(), b" ")
    if len(set(_SEPARATORS.findall(plain))) > 1:
        return False
    return _is_card(_SEPARATORS.sub(b"", plain).decode())


def is_card_integer(value: float) -> bool:
    """Return True if the number, written out, is a possible card number. A table may have made a float of it."""
    return _LOWEST <= value <= _HIGHEST and value == int(value) and _is_card(str(int(value)))


def _is_card(digits: str) -> bool:
    return _ISSUERS.fullmatch(digits) is not None and _has_right_check_digit(digits)


def _has_right_check_digit(digits: str) -> bool:
    """Source: ISO/IEC 7812-1, annex B (Luhn)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


Span = tuple[int, int]

_MOST_DEPTH: Final = 64
_LONGEST_CODE_BYTES: Final = 200
# A bracket, or the name of what is made: `SecretStr(`, `dict[`.
_OPENS: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]*[\[(]|[\[({]")
# A run of backslashes only where it begins: else many of them would take the square of their number.
_TOKEN: Final = re.compile(rb"[\[({]|[\])}]|(?<!\\)\\*[\"']")
_OPENING: Final = frozenset(b"[({")
_BEGINS_TEXT: Final = re.compile(rb"(?:.?[^A-Za-z0-9]|(?:\A|[^A-Za-z0-9])[bBrRuUfF])?\Z", re.DOTALL)
_CLOSING: Final = re.compile(rb"[\])},;]*")
_NOTHING: Final = re.compile(rb"[\s\[\](){}\"'\\]*")
# A call without a text in it, and a type: `token = get_token(user)`, `requests.Session()`, `api_key: Optional[str]`.
_CALL_OR_TYPE: Final = re.compile(
    rb"[a-z_]{3,}(?:\.[a-z_]+)*\([a-z_., =*()\s]*|[A-Za-z_][A-Za-z_.]*\(\)[)\]]*|(?:[A-Za-z_.]+\[)+[A-Za-z_., |\[\]]*"
)

# `session: alice logged in`: these names are words of sentences as well, where they stand alone before a colon.
_WORD_OF_A_SENTENCE: Final = re.compile(
    rb"(?is)(?:\A|[^a-z0-9_.-])(?:sessions?|authorization|secrets?|credentials?)[ \t]*(?::|\xef\xbc\x9a)[ \t]*\Z"
)
_ORDINARY_WORDS: Final = re.compile(
    rb"['(]?(?:[A-Za-z]?[a-z]{1,20}(?:[-_./@'][A-Za-z]?[a-z]{1,20}){0,5}(?:[-_.]v?[0-9]{1,3})?|[A-Z]{2,12})[).,;:!?']*"
)

_SHORT_NAME: Final = re.compile(rb"(?i)(pass|pw|auth|sid|psk|pin|clave|parola)[^a-z]*\Z")
# The way in which somebody was authenticated, not the credential.
_WAYS_IN: Final = frozenset(
    b"""anonymous aws azure azuread cert certificate cognito entra external github gitlab google gssapi iam internal
    kerberos key keycloak ldap ldaps local mtls mutual oauth oauth2 oidc okta openid optional pam passkey
    passwordless plain public radius saml saml2 scram-sha-1 scram-sha-256 social spnego ssh ssl sso tls trust
    webauthn x509""".split()
)
_SECURITY_ID: Final = re.compile(rb"S-1-[0-9-]+|[A-Z][A-Z0-9_]{0,7}")  # of Windows; Oracle's name of a database
# A line of YAML that is no sentence: quoted, in brackets, with a tag, or a mapping.
_STRUCTURE: Final = re.compile(rb"[\"'\[{&!|>]|[A-Za-z0-9_.-]+:(?:\s|\Z)")
_IS_RESET: Final = re.compile(rb"(?i)reset|password|magic|time")


def named_value(data: bytes, at: int, start: int, stop: int) -> Span | None:
    """Return the secret after a name, up to the end of the brackets that it opens, or of the text if nothing closes
    them.

    `at` is the start of the match, with the name. None for an ordinary word.
    """
    span = _whole(data, start, stop)
    value = data[slice(*span)]
    if not _is_value(value):
        return None
    before = data[max(0, at - 1) : start]
    if _WORD_OF_A_SENTENCE.search(before) is not None and _ORDINARY_WORDS.fullmatch(value) is not None:
        return None
    return span


def short_named_value(data: bytes, at: int, start: int, stop: int) -> Span | None:
    """Return the secret after a name with other meanings too: `pass=12` counts, `auth=ldap` does not."""
    span = _whole(data, start, stop)
    value = data[slice(*span)]
    short = _SHORT_NAME.search(data[at:start])
    name = short[1].lower() if short is not None else b""
    if not _is_value(value) or (name == b"pass" and value.isdigit()) or (name == b"auth" and value.lower() in _WAYS_IN):
        return None
    return None if name == b"sid" and _SECURITY_ID.fullmatch(value.rstrip(b")")) is not None else span


def block(data: bytes, at: int, start: int, stop: int) -> Span | None:
    """Return the lines after a name that are indented more than its own, or are items of a list below it.

    None for a sentence, or for one ordinary word.
    """
    line = data.rfind(b"\n", 0, at) + 1
    indent = _indent_of(data[line : line + 256])
    end = start
    for each in data[start:].splitlines(keepends=True):
        text = each.strip()
        if end > start and not (_indent_of(each) > indent or (_indent_of(each) == indent and text.startswith(b"- "))):
            break
        end += len(each)
    value = data[start:end].rstrip()
    first = value.partition(b"\n")[0].strip()
    item = first.removeprefix(b"- ").strip()
    if _WORD_OF_A_SENTENCE.search(data[max(0, at - 1) : start].rstrip()) and _ORDINARY_WORDS.fullmatch(item):
        return None
    is_sentence = b" " in item and not _STRUCTURE.match(item)
    return (start, start + len(value)) if not is_sentence and is_not_ordinary(item) else None


def link_secret(data: bytes, at: int, start: int, stop: int) -> Span | None:
    """Return the secret at the end of a link that grants access. In a password reset, an id in hex is a secret too."""
    value = data[start:stop]
    is_secret = is_random if _IS_RESET.search(data[at:start]) is not None else is_opaque
    return (start, stop) if is_secret(value) else None


def _whole(data: bytes, start: int, stop: int) -> Span:
    """Return the span of the value that begins here, with all that its brackets hold."""
    opening = _OPENS.match(data, start, stop)
    if opening is None:
        return start, stop
    end = _end_of_brackets(data, opening.end() - 1)
    return start, end if end > stop or _CLOSING.fullmatch(data, end, stop) else stop


def _end_of_brackets(data: bytes, start: int) -> int:
    """Return the end of what this bracket opens. Brackets in texts do not count; any kind closes any other."""
    depth, quote = 0, b""
    for match in _TOKEN.finditer(data, start):
        token = match[0]
        if quote:
            is_end = token == quote or (len(quote) == 1 and token[-1:] == quote and len(token) % 2)
            quote = b"" if is_end else quote
        elif token[-1] in b"\"'":
            # Not the apostrophe of a word.
            quote = token if _BEGINS_TEXT.match(data, max(0, match.start() - 2), match.start()) else b""
        elif token[0] in _OPENING:
            depth += 1
            if depth > _MOST_DEPTH:
                break
        else:
            depth -= 1
            if not depth:
                return match.end()
    return len(data)


def _is_value(value: bytes) -> bool:
    if not is_not_ordinary(value):
        return False
    if len(value) > _LONGEST_CODE_BYTES:  # else calls in calls would each be gone through to the end of the text
        return True
    is_nothing = _NOTHING.fullmatch(value) is not None and value[-1:] not in (b"[", b"(", b"{")
    return not is_nothing and not _CALL_OR_TYPE.fullmatch(value)


def _indent_of(line: bytes) -> int:
    return len(line) - len(line.lstrip(b" \t"))


# In UTF-8: soft hyphen; combining marks; Hangul fillers; Mongolian separators; zero-width spaces, joiners and marks of
# direction; word joiner and other invisible operators; variation selectors; BOM; tags. What a terminal does not show:
# colours, control characters.
_UNSEEN: Final = (
    rb"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2\xad|\xcc[\x80-\xbf]|\xcd[\x80-\xaf]"
    rb"|\xe1\x85[\x9f\xa0]|\xe1\xa0[\x8b-\x8e]|\xe2\x80[\x8b-\x8f\xaa-\xae]|\xe2\x81[\xa0-\xaf]|\xe3\x85\xa4"
    rb"|\xef\xb8[\x80-\x8f]|\xef\xbb\xbf|\xef\xbe\xa0|\xf3\xa0[\x80-\x87][\x80-\xbf]"
)
_WIDE: Final = rb"\xef\xbc[\x81-\xbf]|\xef\xbd[\x80-\x9e]"  # Latin letters as wide as Chinese ones
# Letters of Cyrillic and Greek that look like Latin ones, by their numbers.
_TWIN_PAIRS: Final = """
    430a 432B 435e 456i 458j 43ak 43cM 43dH 43eo 440p 455s 442T 443y 445x 441c 501d 410A 412B 415E 406I 408J 41aK 41cM
    41dH 41eO 420P 405S 422T 423Y 425X 421C 3bfo 3b1a 39fO 3c1p
"""
_TWINS: Final = {int(pair[:3], 16): pair[3:] for pair in _TWIN_PAIRS.split()}
_TWIN_BYTES: Final = {chr(twin).encode(): latin.encode() for twin, latin in _TWINS.items()}
_TWIN: Final = b"|".join(  # a class for each first byte, which is faster than a choice among all
    re.escape(bytes([first])) + b"[" + b"".join(re.escape(twin[1:]) for twin in _TWIN_BYTES if twin[0] == first) + b"]"
    for first in sorted({twin[0] for twin in _TWIN_BYTES})
)
_SIGNS: Final = """quot=" apos=' amp=& lt=< gt=> equals== colon=: lowbar=_ lsqb=[ lcub={ num=#"""
_ENTITIES: Final = dict(sign.encode().split(b"=", 1) for sign in _SIGNS.split()) | {b"nbsp": b" ", b"NewLine": b"\n"}
_ENTITY: Final = b"|".join(_ENTITIES)

HINT: Final = (
    _UNSEEN
    # Letters, which no honest writer of URLs encodes, what is encoded twice, an equals sign, and what is not ASCII.
    + rb"|%3[Dd]|%25(?:25)*[0-9A-Fa-f]{2}|%(?:[46][1-9A-Fa-f]|[57][0-9Aa])|%[C-Fc-f][0-9A-Fa-f]%"
    + rb"|&(?:amp;)*(?:#[0-9]+|#[xX][0-9A-Fa-f]+|quot|apos|equals|colon|lowbar);"
    + rb"|\\u[0-9A-Fa-f]{4}|\\x[2-7][0-9A-Fa-f]|"
    + _WIDE
    + rb"|[A-Za-z](?:"
    + _TWIN
    + rb")|(?:"
    + _TWIN
    + rb")[A-Za-z]"
)
"""A pattern, for RE2, of what a text has in it that hides a secret from the other patterns."""

# These run on `re`: a part is only looked for where a byte says that it may begin, and a run only where it begins. Else
# a text of nothing but backslashes, or of one letter of Cyrillic, would take the square of its length.
_MAY_BE_UNSEEN: Final = rb"(?=[\x00-\x1f\x7f\xc2\xcc\xcd\xe1\xe2\xe3\xef\xf3])"
_MAY_BE_WRITTEN: Final = rb"(?=[%&\\\x00-\x1f\x7f\xc2\xcc-\xd4\xe1\xe2\xe3\xef\xf3])"
_TAKEN_BACK: Final = rb"[ -~]\x08"
_LEFT_OUT: Final = _MAY_BE_UNSEEN + rb"(?P<unseen>(?:" + _UNSEEN + rb")+)"
_WRITTEN: Final = (
    _MAY_BE_WRITTEN
    + rb"(?:%(?:25)*(?P<byte>[0-9A-Fa-f]{2})"
    + rb"|&(?:amp;)*(?:#0*(?P<decimal>[0-9]{1,7})|#[xX]0*(?P<hex>[0-9A-Fa-f]{1,6})|(?P<entity>"
    + _ENTITY
    + rb"));|(?<!\\)\\+(?:u(?P<unicode>[0-9A-Fa-f]{4})|x(?P<escaped>[0-9A-Fa-f]{2}))"
    + rb"|(?P<wide>"
    + _WIDE
    + rb")|(?P<twin>(?<=[A-Za-z])(?:"
    + _TWIN
    + rb")+|(?<!"
    + _TWIN.replace(b"|", b")(?<!")
    + rb")(?:"
    + _TWIN
    + rb")+(?=[A-Za-z]))|(?P<unseen>(?:"
    + _UNSEEN
    + rb")+))"
)
_PATTERNS: Final = {
    # Where nothing is taken back, which may begin with any letter, and where something is.
    b"": (re.compile(_LEFT_OUT), re.compile(_WRITTEN)),
    b"\b": (re.compile(_TAKEN_BACK + b"|" + _LEFT_OUT), re.compile(_TAKEN_BACK + b"|" + _WRITTEN)),
}


class Reading:
    """A text with its encoded parts decoded and its invisible characters left out. `data` holds its bytes."""

    __slots__ = ("_is_written", "_original", "_pattern", "data")

    def __init__(self, original: bytes) -> None:
        self._original = original
        left_out, written = _PATTERNS[b"\b" if b"\b" in original else b""]
        self.data = left_out.sub(b"", original)  # the common case of both, and a fast one
        self._is_written = written.search(self.data) is not None
        self._pattern = written if self._is_written else left_out
        if self._is_written:
            self.data = written.sub(_read, original)

    def spans_in_original(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return where these spans of `data` stand in the original, invisible characters inside of them included."""
        if not spans:
            return []
        # Stretches that are in both, and between them what is written in another way: where each begins in `data`, and
        # from where to where it goes in the original.
        begins, starts, ends, is_same = [0], [0], [0], [True]
        length = done = 0
        for match in self._pattern.finditer(self._original):
            start, end = match.span()
            length += start - done
            ends[-1] = start
            done = end
            if read := _read(match) if self._is_written else b"":
                begins.append(length)
                starts.append(start)
                ends.append(end)
                is_same.append(False)
                length += len(read)
            begins.append(length)
            starts.append(end)
            ends.append(end)
            is_same.append(True)

        def in_original(position: int, is_end: bool) -> int:
            stretch = bisect_right(begins, position) - 1
            if is_same[stretch]:
                return starts[stretch] + position - begins[stretch] + is_end
            return ends[stretch] if is_end else starts[stretch]

        return [(in_original(start, False), in_original(end - 1, True)) for start, end in spans]


def _read(match: re.Match[bytes]) -> bytes:
    """Return what stands in a reading instead of this part of the original."""
    kind = match.lastgroup
    text = match[kind or 0]
    match kind:
        case "byte" | "escaped":
            return bytes.fromhex(text.decode())
        case "decimal":
            return _character(int(text))
        case "hex" | "unicode":
            return _character(int(text, 16))
        case "entity":
            return _ENTITIES[text]
        case "wide":
            return chr(ord(text.decode()) - 0xFEE0).encode()
        case "twin":
            return _TWIN_BYTES.get(text) or text.decode().translate(_TWINS).encode()
    return b""


def _character(number: int) -> bytes:
    return chr(number).encode("utf-8", "replace") if number < 0x110000 else b"?"
