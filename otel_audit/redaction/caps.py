"""Limit how large each part of an event may be, and cut what is larger.

`fit_line` makes a whole event fit into a line of the journal: the longest texts are cut first, and the facts that an
auditor asks for last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import msgspec
import re2

from otel_audit.errors import ConfigError
from otel_audit.redaction.values import REDACTED

__all__ = [
    "JOURNAL_BYTES",
    "SHORTEST_CUT",
    "Address",
    "Caps",
    "Findings",
    "beginning_of",
    "cut_key",
    "cut_text",
    "fit_line",
    "json_text",
    "marker_of",
    "path_of",
    "split_marker",
]


JOURNAL_BYTES: Final = 512  # of a line, kept free for the keys that the journal adds: ids, hash, times, seq
SHORTEST_CUT: Final = 112  # in characters: the marker, and a few of the text

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
    """The largest size of each part of an event. Only larger parts are cut.

    Raises:
        ConfigError: a cap is outside its range. The lowest `line_bytes` holds every event of the model's shape.

    Source: ours. The reasons are beside the numbers.
    """

    text_chars: int = 2048  # any text: the longest URL and user agent that proxies and browsers pass on in practice
    detail_chars: int = 4096  # `detail`: a message with the head of a stack trace
    attributes: int = 32  # keys: with the table's own under the 64 of the record
    list_items: int = 64  # roles, actions, lists in attributes
    key_chars: int = 128
    line_bytes: int = 64 * 1024  # UTF-8, with the journal's keys: a quarter of what Loki takes as a line
    depth: int = 6  # levels of lists and mappings below a field; deeper ones are a placeholder

    def __post_init__(self) -> None:
        for cap in fields(self):
            lowest, highest = _RANGES[cap.name]
            value = getattr(self, cap.name)
            if type(value) is not int or not lowest <= value <= highest:
                raise ConfigError(f"Caps.{cap.name}: expected a whole number from {lowest} to {highest}, got {value!r}")

    @property
    def event_bytes(self) -> int:
        """Return how many UTF-8 bytes the line may have before the journal adds its keys."""
        return self.line_bytes - JOURNAL_BYTES


_MARKER = re2.compile(r"…\[truncated, [0-9]{1,12} chars, sha256:[0-9a-f]{64}\]\z")
_MARKER_CHARS: Final = 112  # no marker is longer


def marker_of(text: str, rest: str = "") -> str:
    """Return the end of a cut text. It holds the length in characters, and the SHA-256 in UTF-8, of text and rest."""
    digest = hashlib.sha256(text.encode())
    digest.update(rest.encode())
    return f"…[truncated, {len(text) + len(rest)} chars, sha256:{digest.hexdigest()}]"


def cut_text(text: str, chars: int, marker: str = "") -> str:
    """Return at most `chars` characters of the text (112 or more), ending in the marker if it was cut.

    `marker` is that of the whole text if this is only its beginning. No `[REDACTED]` is cut in two.
    """
    if not marker:
        if len(text) <= chars:
            return text
        marker = marker_of(text)
    return beginning_of(text, chars - len(marker)) + marker


def cut_key(key: str, chars: int, marker: str = "") -> str:
    """Return the key with at most `chars` characters. Two long keys that differ stay different.

    `marker` is that of the whole key if this is only its beginning.
    """
    if len(key) <= chars and not marker:
        return key
    digest = (marker or marker_of(key))[-65:-1]
    tail = f"…{digest[:16]}"
    return key[: chars - len(tail)] + tail


def beginning_of(text: str, chars: int) -> str:
    """Return the first characters, without a `[REDACTED]` that does not fit."""
    if len(text) <= chars:
        return text
    before = text.rfind(REDACTED, max(0, chars - len(REDACTED) + 1), chars + len(REDACTED) - 1)
    return text[: chars if before < 0 else before]


def split_marker(text: str) -> tuple[str, str]:
    """Return the text and the marker of an earlier cut, which is empty if there is none."""
    if not text.endswith("]"):
        return text, ""
    tail = text[-_MARKER_CHARS:]
    found = _MARKER.search(tail)
    if found is None:
        return text, ""
    marker = tail[found.start() :]
    return text[: len(text) - len(marker)], marker


Address = tuple[str | int, ...]
"""Where a value is in an event: keys and list positions, from the outside in."""

Cut = Callable[[str, int], str]


def path_of(at: Address) -> str:
    """Return the address in the form of `redacted` and `truncated`: `$.principal.roles[1]`."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in at)


def json_text(value: Any) -> str:
    """Return a JSON value as compact JSON text."""
    return msgspec.json.encode(value).decode()


class Findings(msgspec.Struct):
    """The parts that were removed from an event and those that were cut, so far."""

    cut: Cut
    most_paths: int
    redacted: set[Address] = msgspec.field(default_factory=set)
    truncated: set[Address] = msgspec.field(default_factory=set)
    # For texts that were cut: the known beginning without secrets, and the marker of the whole.
    whole: dict[Address, tuple[str, str]] = msgspec.field(default_factory=dict)
    before: dict[str, list[str]] = msgspec.field(default_factory=dict)  # the lists that the event came with

    def lists(self) -> dict[str, list[str]]:
        """Return `redacted` and `truncated` with old and new paths, without a list that has none."""
        found = {"redacted": self.redacted, "truncated": self.truncated}
        return {name: self._paths(name, new) for name, new in found.items() if new or name in self.before}

    def _paths(self, name: str, added: set[Address]) -> list[str]:
        before = self.before.get(name, [])
        if not added:
            return before[: self.most_paths]
        new = self._at_most(added, self.most_paths)
        return sorted({*before[: self.most_paths - len(new)], *new})

    def _at_most(self, added: set[Address], count: int) -> set[str]:
        """Return the paths of all. If there are too many, return those of the lists and fields that hold them."""
        for steps in (None, 2, 1, 0):
            paths = {path_of(at[:steps]) for at in added}
            if len(paths) <= count:
                break
        # A path holds keys, and a key with an index behind it may look like an assignment.
        return {self.cut(path, _PATH_CHARS) for path in paths}


_PATH_CHARS: Final = 1024


def fit_line(event: dict[str, Any], findings: Findings, caps: Caps) -> None:
    """Cut `event` until it has at most `caps.event_bytes` as JSON, including the lists of `findings`.

    The order is: the texts of `attributes`, `detail`, all other texts, then `attributes` as a whole. An event of the
    model's shape fits by then. For any other, the largest fields become text.
    """
    fit = _Fit(event, findings, caps.event_bytes)
    if fit.fits():
        return
    if any(fit.shortens(texts) for texts in (fit.texts_of_attributes(), fit.texts_of_detail(), fit.other_texts())):
        return
    fit.drop_attributes()
    while not fit.fits() and fit.flatten_largest():
        pass


class _Fit:
    def __init__(self, event: dict[str, Any], findings: Findings, limit_bytes: int) -> None:
        self._event = event
        self._findings = findings
        self._limit_bytes = limit_bytes

    def fits(self) -> bool:
        return len(msgspec.json.encode({**self._event, **self._findings.lists()})) <= self._limit_bytes

    def texts_of_attributes(self) -> list[Address]:
        return list(_texts(self._event.get("attributes"), ("attributes",)))

    def texts_of_detail(self) -> list[Address]:
        return list(_texts(self._event.get("detail"), ("detail",)))

    def other_texts(self) -> list[Address]:
        others = {name: value for name, value in self._event.items() if name not in ("attributes", "detail")}
        return list(_texts(others, ()))

    def shortens(self, texts: list[Address]) -> bool:
        """Return whether the event fits with these texts cut, each to the largest common length that is short enough.

        If not, they are as short as they get.
        """
        current = {at: self._at(at) for at in texts}
        whole = {at: self._findings.whole.get(at) or split_marker(text) for at, text in current.items()}
        truncated = set(self._findings.truncated)

        def fits_with(chars: int, cut: Cut) -> bool:
            longer = {at for at, text in current.items() if len(text) > chars}
            for at, text in current.items():
                self._put(at, cut(cut_text(whole[at][0], chars, whole[at][1]), chars) if at in longer else text)
            self._findings.truncated = truncated | longer
            return self.fits()

        shortest, longest = SHORTEST_CUT, max(map(len, current.values()), default=SHORTEST_CUT)
        while longest - shortest > 1:
            middle = (shortest + longest) // 2
            if fits_with(middle, _as_it_is):
                shortest = middle
            else:
                longest = middle
        # The remainder is checked only now: a secret of two letters in it grows by the mark.
        return any(fits_with(chars, self._findings.cut) for chars in (shortest, SHORTEST_CUT))

    def drop_attributes(self) -> None:
        findings = self._findings
        if self._event.pop("attributes", None) is not None:
            findings.truncated = {at for at in findings.truncated if at[:1] != ("attributes",)} | {("attributes",)}
            findings.redacted = {at[:1] if at[:1] == ("attributes",) else at for at in findings.redacted}

    def flatten_largest(self) -> bool:
        """Return True if something could still be made smaller: the path lists first, then the largest field."""
        if self._findings.before or max(len(self._findings.redacted), len(self._findings.truncated)) > 1:
            self._findings.before = {}
            self._findings.redacted = {()} if self._findings.redacted else set()
            self._findings.truncated = {()}
            return True
        name = max(self._event, key=lambda name: len(json_text(self._event[name])), default=None)
        if name is None:
            return False
        flat = self._findings.cut(json_text(self._event[name]), SHORTEST_CUT)
        if self._event[name] == flat:
            del self._event[name]
        else:
            self._event[name] = flat
        return True

    def _at(self, at: Address) -> Any:
        value: Any = self._event
        for step in at:
            value = value[step]
        return value

    def _put(self, at: Address, text: str) -> None:
        holder = self._at(at[:-1])
        holder[at[-1]] = text


def _as_it_is(text: str, chars: int) -> str:
    return text


def _texts(value: Any, at: Address) -> Iterator[Address]:
    """Return the addresses of all texts in a JSON value, but not of keys."""
    if type(value) is str:
        yield at
    elif type(value) is dict:
        for key, item in value.items():
            yield from _texts(item, (*at, key))
    elif type(value) is list:
        for index, item in enumerate(value):
            yield from _texts(item, (*at, index))
