"""A text as a reader sees it, and where each part of that stands in the text itself.

A secret copied from a page may hold characters that nobody sees, and is the same secret to whoever reads it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import Final

__all__ = ["UNSEEN", "Reading"]

# Soft hyphen; zero-width spaces, joiners and marks of direction; word joiner and other invisible operators; BOM.
UNSEEN: Final = rb"\xc2\xad|\xe2\x80[\x8b-\x8f\xaa-\xae]|\xe2\x81[\xa0-\xaf]|\xef\xbb\xbf"
"""A pattern, for RE2 and `re`, of what a reading leaves out, in UTF-8."""

_UNSEEN: Final = re.compile(b"(?:" + UNSEEN + b")+")


class Reading:
    """A text without what is not seen. `data`: its bytes."""

    __slots__ = ("_original", "data")

    def __init__(self, original: bytes) -> None:
        self._original = original
        self.data = _UNSEEN.sub(b"", original)

    def spans_in_original(self, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where these spans of `data` stand in the original, with what is not seen inside of them."""
        if not spans:
            return []
        unseen = [match.span() for match in _UNSEEN.finditer(self._original)]
        left_out = [0, *accumulate(end - start for start, end in unseen)]
        joints = [start - before for (start, _), before in zip(unseen, left_out, strict=False)]

        def at(position: int) -> int:
            return position + left_out[bisect_right(joints, position)]

        return [(at(start), at(end - 1) + 1) for start, end in spans]
