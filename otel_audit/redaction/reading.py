"""A text as a reader sees it, and where each part of that stands in the text itself.

A secret may stand in a text that was written for a URL, for HTML or as a JSON string, and one that was copied from a
page may hold characters that nobody sees. It is the same secret to whoever reads it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Final

__all__ = ["HINT", "Reading"]

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
    """A text with what is encoded in it written out, and without what is not seen. `data`: its bytes."""

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
        """Where these spans of `data` stand in the original, with what is not seen inside of them."""
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
    """What stands in a reading instead of this part of the original."""
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
