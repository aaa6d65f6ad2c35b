"""No text becomes anything but a text: neither in an element nor in an attribute."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from otel_audit.notices import escaped
from otel_audit.reporting.markup import element, lines
from tests.reporting.pages import Page


@given(st.text(), st.text())
@example("</p><script>alert(1)</script>", '" onload="alert(1)')
@example("<!--", "-->")
@example("&lt;b&gt;", "&quot;")
@example("a\u202eb\x00\x1b[31m\ud800", "\n")
def test_a_text_is_shown_as_it_is_and_adds_no_element(text: str, title: str) -> None:
    page = Page(element("p", "a", element("b", text), text, title=title))

    assert page.shape == [("p", frozenset({"title"})), ("b", frozenset())]
    assert page.text == f"a{escaped(text)}{escaped(text)}"
    assert page.elements[0].attributes == {"title": escaped(title)}
    assert page.comments == []


@given(st.lists(st.text(st.characters(exclude_characters="\n"))))
def test_the_lines_of_a_text_stay_apart(given_lines: list[str]) -> None:
    page = Page(element("pre", lines("\n".join(given_lines))))

    assert page.text == "\n".join(map(escaped, given_lines))
    assert page.shape == [("pre", frozenset())]


def test_the_name_of_an_attribute_may_be_a_keyword_or_have_a_hyphen() -> None:
    assert element("p", class_="a", aria_label="b") == '<p class="a" aria-label="b"></p>'
    assert element("svg", viewBox="0 0 1 1") == '<svg viewBox="0 0 1 1"></svg>'
    assert element("meta", charset="utf-8") == '<meta charset="utf-8">'
