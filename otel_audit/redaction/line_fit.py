"""Makes an event fit into a line: the longest texts first, the facts that an auditor asks for last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from otel_audit.redaction.caps import SHORTEST_CUT, Caps, cut_text, split_marker

__all__ = ["Address", "Findings", "fit_line", "json_text", "path_of"]

Address = tuple[str | int, ...]
"""Where a value is in an event: keys and list positions, from the outside in."""

Cut = Callable[[str, int], str]


def path_of(at: Address) -> str:
    """The address as it is written in `redacted` and `truncated`: `$.principal.roles[1]`."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in at)


def json_text(value: Any) -> str:
    """A JSON value as compact JSON text."""
    return msgspec.json.encode(value).decode()


@dataclass(slots=True)
class Findings:
    """What was removed from an event and what was cut, so far."""

    cut: Cut
    most_paths: int
    redacted: set[Address] = field(default_factory=set)
    truncated: set[Address] = field(default_factory=set)
    # Of texts that were cut: what is at hand of them, without secrets, and the marker of the whole.
    whole: dict[Address, tuple[str, str]] = field(default_factory=dict)
    before: dict[str, list[str]] = field(default_factory=dict)  # the lists that the event came with

    def lists(self) -> dict[str, list[str]]:
        """`redacted` and `truncated` with the old and the new paths; absent when there was none before and is none."""
        found = {"redacted": self.redacted, "truncated": self.truncated}
        return {name: self._paths(name, new) for name, new in found.items() if new or name in self.before}

    def _paths(self, name: str, added: set[Address]) -> list[str]:
        before = self.before.get(name, [])
        if not added:
            return before[: self.most_paths]
        new = self._at_most(added, self.most_paths)
        return sorted({*before[: self.most_paths - len(new)], *new})

    def _at_most(self, added: set[Address], count: int) -> set[str]:
        """The paths of all; when they are too many, those of the lists and fields that hold them."""
        for steps in (None, 2, 1, 0):
            paths = {path_of(at[:steps]) for at in added}
            if len(paths) <= count:
                break
        # A path holds keys, and a key with an index behind it may look like an assignment.
        return {self.cut(path, _PATH_CHARS) for path in paths}


_PATH_CHARS: Final = 1024


def fit_line(event: dict[str, Any], findings: Findings, caps: Caps) -> None:
    """`event`, with the lists of `findings`, has at most `caps.event_bytes` as JSON. What was cut is in `findings`.

    Order: the texts of `attributes`, `detail`, all other texts; then `attributes` as a whole. An event of the model's
    shape fits by then. Of any other, the largest fields become text.
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
        """Whether the event fits with these texts cut, each to the largest common length that is short enough.

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
        # Only now is looked at what the cut has left: a secret of two letters in it grows by the mark.
        return any(fits_with(chars, self._findings.cut) for chars in (shortest, SHORTEST_CUT))

    def drop_attributes(self) -> None:
        findings = self._findings
        if self._event.pop("attributes", None) is not None:
            findings.truncated = {at for at in findings.truncated if at[:1] != ("attributes",)} | {("attributes",)}
            findings.redacted = {at[:1] if at[:1] == ("attributes",) else at for at in findings.redacted}

    def flatten_largest(self) -> bool:
        """Whether something could still be made smaller: the path lists first, then the largest field."""
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
    """The addresses of all texts in a JSON value, but not of keys."""
    if type(value) is str:
        yield at
    elif type(value) is dict:
        for key, item in value.items():
            yield from _texts(item, (*at, key))
    elif type(value) is list:
        for index, item in enumerate(value):
            yield from _texts(item, (*at, index))
