"""A secret whose parts are items of a list: an option and its value, the lines of a private key."""

from __future__ import annotations

from typing import Any, Final

import re2

from otel_audit.redaction.secret_patterns import KEY_BEGIN, KEY_END, OPTION

__all__ = ["SplitSecret"]

_OPTION: Final = re2.compile(f"(?i){OPTION}")
_KEY_BEGIN: Final = re2.compile(KEY_BEGIN)
_KEY_END: Final = re2.compile(KEY_END)
_END_CHARS: Final = 256


class SplitSecret:
    """Goes through the items of one list."""

    __slots__ = ("_in_key", "_is_after_option")

    def __init__(self) -> None:
        self._in_key = False
        self._is_after_option = False

    def takes(self, item: Any) -> bool:
        """Whether the item belongs to a secret that began in one before it. To be asked for each, in their order."""
        text = _ends_of(item) if type(item) is str else ""
        if self._in_key:
            self._in_key = _KEY_END.search(text) is None
            return True
        is_value = self._is_after_option and item != "" and type(item) is not bool and not text.startswith("-")
        self._is_after_option = _OPTION.fullmatch(text) is not None
        self._in_key = len(_KEY_BEGIN.findall(text)) > len(_KEY_END.findall(text))
        return is_value


def _ends_of(text: str) -> str:
    """What is looked at of an item: a key may begin at its end, and end at its beginning."""
    return text if len(text) <= 2 * _END_CHARS else f"{text[:_END_CHARS]}\n{text[-_END_CHARS:]}"
