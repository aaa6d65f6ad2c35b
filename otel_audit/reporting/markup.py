"""Make HTML elements in which every text is escaped.

A text can enter a page only as a child or an attribute of `element`, which escapes it. Everything else in a page is a
`Markup`, which `element` has made.
"""

from __future__ import annotations

from html import escape
from typing import Final

from otel_audit.notices import escaped

__all__ = ["Markup", "document", "element", "joined", "lines"]

_VOID: Final = frozenset({"meta", "rect"})
_RAW: Final = frozenset({"style"})


class Markup(str):
    """A piece of HTML that `element` or `joined` made."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str) -> Markup:
    """Return an element. A child that is no `Markup` is a text.

    A character that is not printable is shown as an escape, so that no text can turn round what stands beside it. Of
    the name of an attribute, `_` at its end is dropped and every other one is a `-`. `style` takes one text of ours,
    which is not escaped.
    """
    opening = "".join(f' {_attribute(key)}="{_text(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{opening}>" if name == "meta" else f"<{name}{opening}/>")
    content = "".join(children) if name in _RAW else joined(*children)
    return Markup(f"<{name}{opening}>{content}</{name}>")


def joined(*children: str) -> Markup:
    """Return several children in a row."""
    return Markup("".join(each if isinstance(each, Markup) else _text(each) for each in children))


def lines(text: str) -> Markup:
    """Return a text of several lines, for a `pre`."""
    return Markup("\n".join(map(_text, text.split("\n"))))


def document(*children: Markup) -> str:
    """Return a whole page in English."""
    return f"<!DOCTYPE html>\n{element('html', *children, lang='en')}\n"


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-") if name != "viewBox" else name


def _text(text: str) -> str:
    return escape(escaped(text))
