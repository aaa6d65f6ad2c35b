"""Print notices on stderr, each kind at most once a minute, and make text safe for a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Any, Final

from otel_audit.threads import FORKS_WAIT, get_ident, new_lock

__all__ = ["Notices", "escaped", "escaped_json", "number_of", "shown_json"]


_SPACES: Final = ("Zs", "Zl", "Zp")  # left alone in JSON, since no terminal obeys them


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 stream" or "2,000 events"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def escaped(text: str) -> str:
    """Return the text with every character that is not printable as a Python escape, such as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def escaped_json(text: str) -> str:
    """Return JSON of the same value, with every character that a terminal would obey as an escape of JSON."""
    if text.isprintable():
        return text
    return "".join(char if _is_harmless(char) else json.dumps(char)[1:-1] for char in text.replace("\x7f", "\\u007f"))


def shown_json(value: Any) -> str:
    """Return a value as the JSON that a command prints with `--json`."""
    return escaped_json(json.dumps(value, indent=2))


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char == "\n" or unicodedata.category(char) in _SPACES


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


_INTERVAL_S = 60.0
_TURN_MAX_S = 1.0  # the longest wait for another notice: stderr may be a pipe that nobody reads


class Notices:
    """Print each kind of notice at once, and then at most once a minute. Any thread; fork-safe; never raises."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._said_at: dict[str, float] = {}
        self._lock = new_lock()
        self._inside: set[int] = set()
        self._pid = os.getpid()

    def say(self, kind: str, text: str) -> None:
        """Write one line to stderr, unless this kind was said less than a minute ago."""
        if os.getpid() != self._pid:
            self._begin()  # the lock may be held by a thread of the parent
        me = get_ident()
        if me in self._inside:  # a signal handler inside `say`: its notice is dispensable
            return
        try:
            self._inside.add(me)
            if self._is_due(kind) and self._lock.acquire(timeout=_TURN_MAX_S):
                try:
                    _write(text)
                finally:
                    self._lock.release()
        except Exception:
            return  # stderr is closed: there is nobody to tell
        finally:
            self._inside.discard(me)

    def _is_due(self, kind: str) -> bool:
        now = self._clock()
        if now - self._said_at.get(kind, -_INTERVAL_S) < _INTERVAL_S:
            return False
        self._said_at[kind] = now  # even if its turn never comes, so that not every call waits for it
        return True


def _write(text: str) -> None:
    stream = sys.stderr
    if stream is None:  # `print` would use stdout, which may carry a protocol
        return
    with FORKS_WAIT:  # else a child may inherit the lock of the stream's buffer, and hang at its own first write
        print(f"otel-audit: {escaped(text)}", file=stream, flush=True)
