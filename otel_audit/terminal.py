"""Text that may be shown on a terminal: nothing in it that a terminal would obey, whoever wrote it.

Control characters would move the cursor, set the window's title or start a new line; bidirectional marks would make a
line read differently from what is stored. The end of a pipe may be a terminal too, so that nothing depends on one.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

__all__ = ["escaped", "escaped_json", "shown_json"]

_SPACES: Final = ("Zs", "Zl", "Zp")  # those of JSON stay as they are: no terminal obeys them


def escaped(text: str) -> str:
    """The text with every character that is not printable written as a Python escape, such as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def escaped_json(text: str) -> str:
    """JSON of the same value, with every character that a terminal would obey written as an escape of JSON."""
    if text.isprintable():
        return text
    return "".join(char if _is_harmless(char) else json.dumps(char)[1:-1] for char in text.replace("\x7f", "\\u007f"))


def shown_json(value: Any) -> str:
    """A value as the JSON that a command prints with `--json`."""
    return escaped_json(json.dumps(value, indent=2))


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char == "\n" or unicodedata.category(char) in _SPACES


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
