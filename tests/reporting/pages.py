"""Read a page as a browser does: its elements with their attributes, and its texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from typing import NamedTuple

__all__ = ["Element", "Page"]

_VOID = {"meta", "rect"}


class Element(NamedTuple):
    name: str
    attributes: Mapping[str, str | None]
    inside: Sequence[str]


class Page(HTMLParser):
    """The elements of a page in their order, and the texts between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append(Element(tag, dict(attrs), tuple(self._open)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        """All texts, one after the other."""
        return "".join(self.texts)

    def all(self, name: str) -> list[Element]:
        """The elements of a name."""
        return [each for each in self.elements if each.name == name]

    @property
    def shape(self) -> list[tuple[str, frozenset[str]]]:
        """The elements and the names of their attributes, which no text in an event may change."""
        return [(each.name, frozenset(each.attributes)) for each in self.elements]
