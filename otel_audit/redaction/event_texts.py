"""The texts of one event, without secrets and within their caps, at a cost that no sender of a text can raise."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
import re2

from otel_audit.redaction.caps import SHORTEST_CUT, Caps, beginning_of, cut_key, cut_text, marker_of, split_marker
from otel_audit.redaction.screen import MOST_PARTS, Screen, Work
from otel_audit.redaction.secret_pattern import REDACTED
from otel_audit.redaction.secret_patterns import OPEN_AT_THE_END

__all__ = ["MARGIN_CHARS", "EventTexts", "Settled"]

MARGIN_CHARS: Final = 512
"""How much of a text is looked at behind its cap: more than any pattern needs to tell a secret by its beginning."""

_MAX_SETTLING: Final = 4
_CHARS_A_PART: Final = 128  # so that larger caps allow more parts that look like secrets
_SEARCHES: Final = 1024
_OPEN_AT_THE_END: Final = re2.compile(OPEN_AT_THE_END)


class Settled(NamedTuple):
    """A text in which nothing is left to remove or to cut.

    `marker`: that of the whole text where it was cut, else empty. `head`: what is at hand of it, without secrets.
    """

    text: str
    removed: bool
    marker: str = ""
    head: str = ""


class EventTexts:
    """Cleans the texts of one event. Of each only its cap and a margin is looked at, whatever its length is."""

    __slots__ = ("_caps", "_chars_left", "_without_secrets", "_work")

    def __init__(self, screen: Screen, caps: Caps) -> None:
        self._without_secrets = screen.without_secrets
        self._caps = caps
        self._work = Work(_SEARCHES)
        self._chars_left = caps.attributes * (caps.text_chars + MARGIN_CHARS) + caps.line_bytes

    @property
    def are_too_many(self) -> bool:
        """Whether more text was looked at than all attributes at their caps and one line hold."""
        return self._chars_left < 0

    def text(self, text: str, chars: int) -> Settled:
        """The text with at most `chars` characters, and twice as many bytes in a line: JSON writes six for some."""
        return self._settled(text, chars, lambda head, most, old, new: cut_text(head, most, old or new))

    def key(self, key: str) -> Settled:
        """The key of a mapping, within its cap."""
        return self._settled(key, self._caps.key_chars, lambda head, most, old, new: cut_key(head + old, most, new))

    def _settled(self, text: str, chars: int, cut: Callable[[str, int, str, str], str]) -> Settled:
        """Secrets go first: a cut through a secret would leave a part that no pattern knows.

        A cut can make a match that was none before (the end of a text is the end of a word), so both are repeated until
        nothing changes; a text that does not come to rest is removed.
        """
        self._chars_left -= min(len(text), chars + MARGIN_CHARS)
        removed = False
        marker = whole_head = ""  # of the first cut
        clean = None
        for _ in range(_MAX_SETTLING):
            window, rest = text[: chars + MARGIN_CHARS], text[chars + MARGIN_CHARS :]
            body, old = split_marker(window) if len(text) <= chars else (window, "")
            clean = head = body if body == clean else self._without_secrets_of(body, chars)
            if rest:
                head = _OPEN_AT_THE_END.sub(REDACTED, head)
            removed |= head != body
            most = _chars_within(head, chars, 2 * chars)
            new = marker_of(head, rest) if rest or (not old and len(head) > most) else ""
            if rest:
                head = _without_margin(head)
            if not marker and (new or len(head) + len(old) > most):
                marker, whole_head = new or old, head
            short = cut(head, most, old, new)
            if short == text:
                return Settled(text, removed, marker, whole_head)
            text = short
        return Settled(REDACTED, True, marker, whole_head)

    def _without_secrets_of(self, text: str, chars: int) -> str:
        return self._without_secrets(text, max(MOST_PARTS, chars // _CHARS_A_PART), self._work)


def _without_margin(head: str) -> str:
    """The beginning of a longer text as far as its secrets are known: at its end one may begin that is cut in two."""
    # What ends in a secret was removed to its end, wherever that is.
    return head if head.endswith(REDACTED) else beginning_of(head, max(0, len(head) - MARGIN_CHARS))


def _chars_within(text: str, chars: int, most_bytes: int) -> int:
    """How many characters a cut text may have, so that JSON writes at most so many bytes for it. At most `chars`."""
    if _json_bytes(text[:chars]) <= most_bytes:
        return chars
    shortest = bisect_left(range(chars), True, key=lambda count: _json_bytes(text[:count]) > most_bytes)
    return max(SHORTEST_CUT, shortest - 1)


def _json_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) - 2
