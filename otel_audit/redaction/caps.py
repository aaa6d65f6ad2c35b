"""How large a part of an event may be, and how a text is cut that is larger."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Final

import re2

from otel_audit.errors import ConfigError
from otel_audit.redaction.secret_pattern import REDACTED

__all__ = [
    "JOURNAL_BYTES",
    "SHORTEST_CUT",
    "Caps",
    "beginning_of",
    "cut_key",
    "cut_text",
    "marker_of",
    "split_marker",
]

JOURNAL_BYTES: Final = 512  # of a line, kept free for the keys that the journal adds: ids, hash, times, seq
SHORTEST_CUT: Final = 112  # characters: the marker and a few of the text

_RANGES: Final[dict[str, tuple[int, int]]] = {
    "text_chars": (128, 1 << 16),
    "detail_chars": (128, 1 << 16),
    "attributes": (1, 128),
    "list_items": (16, 64),
    "key_chars": (32, 256),
    "line_bytes": (32 * 1024, 256 * 1024),
    "depth": (2, 16),
}


@dataclass(frozen=True, slots=True)
class Caps:
    """The largest size of each part of an event. Only what is larger is cut; the rest stays as it is.

    Raises:
        ConfigError: a cap is outside its range. The lowest `line_bytes` holds every event of the model's shape.

    Source: ours. The reasons stand beside the numbers.
    """

    text_chars: int = 2048  # any text: the longest URL and user agent that proxies and browsers pass on in practice
    detail_chars: int = 4096  # `detail`: a message with the head of a stack trace
    attributes: int = 32  # keys: with the table's own under the 64 of the record
    list_items: int = 64  # roles, actions, lists in attributes
    key_chars: int = 128
    line_bytes: int = 64 * 1024  # UTF-8, with the journal's keys: a quarter of what Loki takes as a line
    depth: int = 6  # levels of lists and mappings below a field; deeper ones are a placeholder

    def __post_init__(self) -> None:
        for field in fields(self):
            lowest, highest = _RANGES[field.name]
            value = getattr(self, field.name)
            if type(value) is not int or not lowest <= value <= highest:
                raise ConfigError(
                    f"Caps.{field.name}: expected a whole number from {lowest} to {highest}, got {value!r}"
                )

    @property
    def event_bytes(self) -> int:
        """What the line may hold before the journal adds its keys, in UTF-8 bytes."""
        return self.line_bytes - JOURNAL_BYTES


_MARKER = re2.compile(r"…\[truncated, [0-9]{1,12} chars, sha256:[0-9a-f]{64}\]\z")
_MARKER_CHARS: Final = 112  # no marker is longer


def marker_of(text: str, rest: str = "") -> str:
    """The end of a cut text: the length of the text and its rest in characters, and their SHA-256 in UTF-8, in hex."""
    digest = hashlib.sha256(text.encode())
    digest.update(rest.encode())
    return f"…[truncated, {len(text) + len(rest)} chars, sha256:{digest.hexdigest()}]"


def cut_text(text: str, chars: int, marker: str = "") -> str:
    """The text with at most `chars` characters (112 or more), the last of them the marker when something was cut.

    `marker`: that of the whole, where the text is only its beginning. No `[REDACTED]` is cut in two.
    """
    if not marker:
        if len(text) <= chars:
            return text
        marker = marker_of(text)
    return beginning_of(text, chars - len(marker)) + marker


def cut_key(key: str, chars: int, marker: str = "") -> str:
    """The key with at most `chars` characters; two long keys that differ are still different.

    `marker`: that of the whole, where the key is only its beginning.
    """
    if len(key) <= chars and not marker:
        return key
    digest = (marker or marker_of(key))[-65:-1]
    tail = f"…{digest[:16]}"
    return key[: chars - len(tail)] + tail


def beginning_of(text: str, chars: int) -> str:
    """The first characters, without a `[REDACTED]` that does not fit."""
    if len(text) <= chars:
        return text
    before = text.rfind(REDACTED, max(0, chars - len(REDACTED) + 1), chars + len(REDACTED) - 1)
    return text[: chars if before < 0 else before]


def split_marker(text: str) -> tuple[str, str]:
    """The text and the marker of an earlier cut, empty when there is none."""
    if not text.endswith("]"):
        return text, ""
    tail = text[-_MARKER_CHARS:]
    found = _MARKER.search(tail)
    if found is None:
        return text, ""
    marker = tail[found.start() :]
    return text[: len(text) - len(marker)], marker
