"""Where the value ends that stands behind the name of a secret, and whether it is one or an ordinary word."""

from __future__ import annotations

import re
from typing import Final

from otel_audit.redaction.secret_pattern import is_not_ordinary, is_opaque, is_random

__all__ = ["Span", "block", "link_secret", "named_value", "short_named_value"]

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
# How somebody was let in, not with what.
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
    """The secret behind a name: to the end of the brackets that it opens, or of the text where none closes them.

    `at`: where the match begins, with the name. None for an ordinary word.
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
    """The secret behind a name that means something else as well: `pass=12` counts, `auth=ldap` says how."""
    span = _whole(data, start, stop)
    value = data[slice(*span)]
    short = _SHORT_NAME.search(data[at:start])
    name = short[1].lower() if short is not None else b""
    if not _is_value(value) or (name == b"pass" and value.isdigit()) or (name == b"auth" and value.lower() in _WAYS_IN):
        return None
    return None if name == b"sid" and _SECURITY_ID.fullmatch(value.rstrip(b")")) is not None else span


def block(data: bytes, at: int, start: int, stop: int) -> Span | None:
    """The lines behind a name that are indented more than its own, or are items of a list below it.

    None for a sentence, and for one ordinary word.
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
    """The last step of the path of a link that lets somebody in. An id in hex may be a thing's, but not in a reset."""
    value = data[start:stop]
    is_secret = is_random if _IS_RESET.search(data[at:start]) is not None else is_opaque
    return (start, stop) if is_secret(value) else None


def _whole(data: bytes, start: int, stop: int) -> Span:
    """The span of the value that begins here, with all that its brackets hold."""
    opening = _OPENS.match(data, start, stop)
    if opening is None:
        return start, stop
    end = _end_of_brackets(data, opening.end() - 1)
    return start, end if end > stop or _CLOSING.fullmatch(data, end, stop) else stop


def _end_of_brackets(data: bytes, start: int) -> int:
    """The end of what this bracket opens. Brackets inside of texts do not count, and any kind closes any other."""
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
