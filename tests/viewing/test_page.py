"""The page in a real Chromium: read by keyboard, held against `query`, and attacked by what stands in events."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from playwright.sync_api import Page, ViewportSize, expect

from otel_audit import AuditEvent, AuditPrincipal
from otel_audit.cli import main
from otel_audit.viewing.server import PageServer
from tests.viewing.opened import Open, Opened
from tests.viewing.trails import ALICE, logging, some_events, tampered
from tests.walkthrough import ROOT

pytestmark = pytest.mark.processes

VERIFIER: Final = ROOT / "verifiers" / "python" / "verify_proof.py"
HOSTILE: Final = {
    "markup": "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "attribute": "\"'><svg/onload=\"document.title='owned'\">",
    "direction": "a\u202egnp.exe",
    "terminal": "\x1b[2J\x1b]0;owned\x07",
    "template": "${document.title='owned'}{{7*7}}",
}


def shown(opened: Opened) -> list[str]:
    """Stream and number of each event on the page, as its rows name them."""
    keys: list[str] = opened.rows().locator("th button").evaluate_all("all => all.map((each) => each.dataset.key)")
    return keys


def queried(directory: Path, *options: str) -> list[str]:
    done = CliRunner().invoke(main, ["query", str(directory), "--json", *options])
    assert done.exit_code == 0, done.output
    return [f"{each['stream_id']}:{each['seq']}" for each in map(json.loads, done.stdout.splitlines())]


def test_filters_give_the_answer_of_query(look: Open, shared: PageServer) -> None:
    opened, journal = look(), Path(shared.trail.where)
    assert shown(opened) == queried(journal)

    for name, word in (
        ("Actor", "agent-7"),
        ("On behalf of", "bob"),
        ("Tool", "wri*"),
        ("Path", "/orders/*"),
        ("Target", "table/salaries"),
        ("Type", "mcp.*"),
        ("Since", "1h"),
        ("Until", "yesterday"),
        ("Text anywhere in the line", "ORDERS/3"),
    ):
        option = "--text" if name.startswith("Text") else f"--{name.lower().replace(' ', '-')}"
        expected = queried(journal, option, word)
        opened.page.get_by_label(name, exact=True).fill(word)
        expect(opened.page.locator("#count")).to_have_text(_events(len(expected)))
        assert shown(opened) == expected
        opened.page.get_by_role("button", name=f"Remove the filter {name.split()[0]}").click()
        expect(opened.page.locator("#count")).to_have_text("20 events")

    opened.page.get_by_role("button", name=re.compile("^Denied")).click()
    expect(opened.page.locator("#count")).to_have_text("5 events")
    assert shown(opened) == queried(journal, "--outcome", "denied")


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count} events"


def test_one_person_one_request_and_one_stretch_of_time_are_a_click_away(look: Open, shared: PageServer) -> None:
    opened, journal = look(), Path(shared.trail.where)
    page = opened.page
    opened.rows().filter(has_text="/orders/2").click()
    page.get_by_role("button", name="This person").click()
    expect(page.locator("#count")).to_have_text("10 events")
    assert shown(opened) == queried(journal, "--actor", "00u17")

    page.get_by_role("button", name="This request").click()
    expect(page.locator("#count")).to_have_text("1 event")
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#count")).to_have_text("20 events")

    bar = page.locator("#spans button").last
    count = sum(map(int, re.findall(r"(\d+) [a-z]+(?:,|$)", str(bar.get_attribute("aria-label")).split(": ")[1])))
    bar.click()
    expect(page.locator("#count")).to_have_text(_events(count))
    page.go_back()
    expect(page.locator("#count")).to_have_text("20 events")


def test_pages_show_every_event_once_and_a_page_can_be_opened_by_its_address(look: Open, tmp_path: Path) -> None:
    with logging(tmp_path / "journal") as audit:
        some_events(audit, rounds=60)
    opened = look(tmp_path / "journal")
    page, found = opened.page, []
    for numbers in ("1 to 100 of 240", "101 to 200 of 240", "201 to 240 of 240"):
        expect(page.locator("#page")).to_have_text(numbers)
        found += shown(opened)
        address = page.url
        if numbers != "201 to 240 of 240":
            page.get_by_role("button", name="Older").click()
    assert found == queried(tmp_path / "journal")
    expect(page.get_by_role("button", name="Older")).to_be_disabled()

    page.get_by_role("button", name="Newer").click()
    expect(page.locator("#page")).to_have_text("101 to 200 of 240")
    page.goto(address)
    expect(page.locator("#page")).to_have_text("40 of 240")
    assert shown(opened) == found[200:]


def test_a_proof_from_the_page_convinces_a_stranger(look: Open, tmp_path: Path) -> None:
    opened = look()
    page = opened.page
    opened.rows().filter(has_text="salaries").first.click()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download the proof").click()
    proof = tmp_path / downloading.value.suggested_filename
    downloading.value.save_as(proof)
    command = page.locator("#event .result code").last.inner_text()
    key = command.split("--key ")[1].strip("'")

    done = subprocess.run(
        [sys.executable, str(VERIFIER), "--key", key, str(proof)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    event = json.loads(done.stdout)
    assert f"{event['stream_id']}:{event['seq']}" == shown(opened)[2]
    assert event["resource"]["name"] == "salaries"


def test_a_changed_line_shows_as_broken_and_has_no_proof(look: Open, journal: Path) -> None:
    seq = tampered(journal, b"/orders/2", lambda line: line.replace(b'"alice"', b'"carol"'))
    opened = look(journal)
    page = opened.page
    expect(page.locator("#verdict-word")).to_have_text("Broken")
    expect(opened.rows().filter(has_text="Broken")).to_have_count(1)
    expect(opened.rows().filter(has_text="Broken")).to_contain_text("carol")

    page.get_by_role("button", name="Broken").first.click()
    page.get_by_role("button", name=f"Open line {seq}").click()

    expect(page.get_by_role("complementary")).to_contain_text(f"line {seq} was changed")
    expect(page.locator(".chain")).to_contain_text("and it does not")
    page.get_by_role("button", name="Download the proof").click()
    expect(page.locator("#event .result")).to_contain_text("cannot be proven")
    opened.said[:] = [each for each in opened.said if "409" not in each]  # the browser notes the refusal


def test_follow_shows_a_new_event_at_the_top_and_says_so(look: Open, journal: Path) -> None:
    opened = look(journal)
    page = opened.page
    with logging(journal) as audit:
        page.get_by_role("button", name="Follow").click()
        expect(page.get_by_role("button", name="Follow")).to_have_attribute("aria-pressed", "true")
        audit.log_http_request(method="GET", path="/new", status_code=200, principal=ALICE)
        expect(opened.rows().first).to_contain_text("/new")
        expect(page.locator("#said")).to_have_text("New event: alice, success, GET /new")

        page.get_by_role("button", name="Follow").click()
        audit.log_http_request(method="GET", path="/newer", status_code=200, principal=ALICE)
        page.get_by_role("button", name="New events: show them").click()
        expect(opened.rows().first).to_contain_text("/newer")
    expect(page.locator("#count")).to_have_text("22 events")


def test_what_stands_in_an_event_is_text_and_never_obeyed(look: Open, tmp_path: Path) -> None:
    with logging(tmp_path / "journal") as audit:
        for text in HOSTILE.values():
            principal = AuditPrincipal(username=text, id=text, on_behalf_of=text)
            audit.log_http_request(method=text, path=f"/{text}", status_code=200, principal=principal)
            audit.log_mcp_call(tool_name=text, principal=principal, outcome=text)
    opened = look(tmp_path / "journal")
    page = opened.page
    for number in range(2 * len(HOSTILE)):
        opened.rows().nth(number).click()
        expect(opened.rows().nth(number)).to_have_class(re.compile("is-open"))
        assert_nothing_is_obeyed(page)

    for text in HOSTILE.values():
        page.get_by_label("Actor", exact=True).fill(text)
        expect(page.locator("#count")).to_have_text("2 events")
        expect(page.locator("#l-actor option")).to_have_count(1)
        assert_nothing_is_obeyed(page)
    page.get_by_label("Actor", exact=True).fill(HOSTILE["direction"])
    expect(opened.rows().first).to_contain_text("a\\u{202e}gnp.exe")
    page.get_by_label("Actor", exact=True).fill(HOSTILE["markup"])
    expect(opened.rows().first).to_contain_text(HOSTILE["markup"])


def assert_nothing_is_obeyed(page: Page) -> None:
    assert page.title().startswith("Audit trail")
    assert page.locator("img, iframe, object, svg svg, [onload], [onerror]").count() == 0
    assert page.locator("script").count() == 1
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f]", page.locator("body").inner_text())


def test_the_page_is_walked_through_by_keyboard_alone(look: Open) -> None:
    opened = look()
    page, press = opened.page, opened.page.keyboard.press

    def focused() -> str:
        return str(page.evaluate(FOCUSED))

    page.locator("body").evaluate("body => { body.tabIndex = -1; body.focus(); body.removeAttribute('tabindex'); }")
    press("Tab")
    assert focused() == "Skip to the events"
    press("Enter")
    press("Tab")
    assert focused() == shown(opened)[0]
    press("ArrowDown")
    press("ArrowDown")
    assert focused() == shown(opened)[2]
    press("Enter")
    expect(page.locator("#event-title")).to_be_focused()
    press("Tab")
    assert focused() == "×"
    press("Escape")
    expect(page.get_by_role("complementary")).to_be_hidden()
    assert focused() == shown(opened)[2]

    press("/")
    assert focused() == "f-text"
    page.keyboard.type("orders/4")
    expect(page.locator("#count")).to_have_text("1 event")
    press("Shift+Tab")
    assert focused() == "f-until"
    for _ in range(2):
        press("Tab")
    press("Enter")  # on the filter that was set: it is taken off
    expect(page.locator("#count")).to_have_text("20 events")

    page.locator("#spans button[tabindex='0']").focus()
    while page.locator("#spans button").first.get_attribute("tabindex") == "-1":
        press("ArrowLeft")
    expect(page.locator("#spans button").first).to_be_focused()
    press("Enter")
    expect(page.locator("#f-since")).not_to_have_value("")


FOCUSED: Final = """() => {
  const { id, dataset, textContent } = document.activeElement;
  return id || dataset.key || textContent;
}"""


# A tree as a screen reader has it, and the rules that it is held against.

Node = Mapping[str, Any]


def tree_of(page: Page) -> list[Node]:
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [each for each in nodes if not each.get("ignored")]


def value(node: Node, name: str) -> str:
    return str(node.get(name, {}).get("value", ""))


def assert_a_screen_reader_finds_its_way(page: Page) -> None:
    tree = tree_of(page)
    roles = [value(node, "role") for node in tree]
    assert {"search", "main", "banner", "contentinfo"} <= set(roles) or "complementary" in roles
    assert max(roles.count(each) for each in ("main", "banner", "search", "complementary")) == 1
    assert [
        value(node, "role") for node in tree if value(node, "role") in NAMED and not value(node, "name").strip()
    ] == []
    levels = [int(property_of(node, "level")) for node in tree if value(node, "role") == "heading"]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert all(value(node, "name") for node in tree if value(node, "role") == "columnheader")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate(TWICE) == []
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_finds_its_way_and_every_text_stands_out(look: Open, journal: Path, scheme: str) -> None:
    tampered(journal, b"/orders/2", lambda line: line.replace(b'"alice"', b'"carol"'))
    opened = look(journal, color_scheme=scheme, reduced_motion="reduce")
    page = opened.page
    assert {"table", "row", "columnheader", "rowheader", "cell"} <= {value(node, "role") for node in tree_of(page)}
    assert_a_screen_reader_finds_its_way(page)

    page.get_by_role("button", name="Broken").first.click()
    expect(page.get_by_role("region", name="Verification")).to_be_focused()
    page.get_by_role("button", name=re.compile("^Open line")).click()
    expect(page.get_by_role("complementary", name="GET /orders/2")).to_be_visible()
    assert_a_screen_reader_finds_its_way(page)

    page.keyboard.press("Escape")
    page.get_by_label("Actor", exact=True).fill("nobody")
    expect(page.get_by_text("No event matches these filters")).to_be_visible()
    assert_a_screen_reader_finds_its_way(page)


def property_of(node: Node, name: str) -> str:
    return str(next(each["value"]["value"] for each in node["properties"] if each["name"] == name))


NAMED: Final = {"button", "link", "textbox", "searchbox", "combobox", "table", "region", "complementary", "progressbar"}
TWICE: Final = """() => {
  const ids = [...document.querySelectorAll('[id]')].map((each) => each.id);
  return ids.filter((id, place) => ids.indexOf(id) !== place);
}"""


# Every visible text against the ground that it stands on. Source: WCAG 2.2, 1.4.3; relative luminance.
CONTRAST: Final = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const pixels = (color, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = (each) => each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4;
  const luminance = (rgb) => rgb.map((each) => linear(each / 255))
    .reduce((sum, each, place) => sum + each * [.2126, .7152, .0722][place], 0);
  const css = (rgb) => `rgb(${rgb.join(' ')})`;
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const own = getComputedStyle(element).backgroundColor;
    return pixels(own, css(ground(element.parentElement)));
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), poor = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    const isExempt = element.closest('.unseen, [disabled], noscript, datalist, .skip');
    if (!text || isExempt || !element.checkVisibility()) continue;
    const below = ground(element), style = getComputedStyle(element);
    const [a, b] = [luminance(pixels(style.color, css(below))), luminance(below)].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push(`${text.slice(0, 40)}: ${style.color} on ${below}`);
  }
  return [...new Set(poor)];
}"""


def test_light_and_dark_follow_the_system(look: Open) -> None:
    opened = look(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened.page.evaluate(ground)

    opened.page.emulate_media(color_scheme="dark")

    assert _brightness(light) > 200
    assert _brightness(opened.page.evaluate(ground)) < 60


def _brightness(color: str) -> float:
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


@pytest.mark.parametrize(("width", "height"), [(680, 425), (320, 640)], ids=["200 %", "400 %"])
def test_a_page_that_is_zoomed_scrolls_in_one_direction_and_loses_nothing(
    look: Open, journal: Path, width: int, height: int
) -> None:
    opened = look()
    page = opened.page
    page.set_viewport_size({"width": width, "height": height})  # what zoom leaves of the window of 1360 by 850

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    row = opened.rows().nth(1)
    assert all(word in row.inner_text() for word in ("agent-7", "read", "success"))
    page.get_by_text("Filters", exact=True).click()
    page.get_by_label("Actor", exact=True).fill("alice")
    expect(page.locator("#count")).to_have_text("10 events")
    row.locator("button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#event-title")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('main').inert")
    page.get_by_role("button", name="Close this event").click()
    expect(row.locator("button")).to_be_focused()


def test_on_a_phone_a_long_outcome_leaves_room_for_the_time(look: Open, tmp_path: Path) -> None:
    with logging(tmp_path / "journal") as audit:
        some_events(audit)
        audit.log(AuditEvent(event_type="order.paid", outcome=HOSTILE["markup"], principal=ALICE))
    opened = look(tmp_path / "journal", reduced_motion="reduce", viewport=ViewportSize(width=400, height=850))

    heights = opened.page.locator("#rows th time").evaluate_all(
        "all => all.map((each) => each.getClientRects().length)"
    )
    moving = """[...document.querySelectorAll("*")].filter((each) => {
      const style = getComputedStyle(each);
      return parseFloat(style.transitionDuration) > 0 || style.animationName !== "none";
    }).length"""

    assert max(heights) == min(heights)
    assert opened.page.evaluate(moving) == 0
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 400


def test_a_long_name_is_broken_into_lines_in_the_event_that_is_open(look: Open, tmp_path: Path) -> None:
    with logging(tmp_path / "journal", ledger=False) as audit:
        audit.log_mcp_call(tool_name="read", principal=AuditPrincipal(username="a" * 3000))
    opened = look(tmp_path / "journal")

    opened.rows().first.click()

    sub = opened.page.locator("#event .sub")
    expect(sub).to_be_visible()
    assert sub.evaluate("each => each.scrollWidth <= each.clientWidth && each.clientHeight < 200")


def test_a_line_is_copied_as_it_stands(look: Open, shared: PageServer) -> None:
    opened = look(permissions=["clipboard-read", "clipboard-write"])
    opened.rows().first.click()

    opened.page.get_by_role("button", name="Copy").click()
    expect(opened.page.get_by_role("button", name="Copied")).to_be_visible()

    copied = opened.page.evaluate("navigator.clipboard.readText()").encode() + b"\n"
    assert copied in b"".join(path.read_bytes() for path in Path(shared.trail.where).glob("0*.jsonl"))


def test_when_the_command_has_ended_the_page_says_so(look: Open, journal: Path) -> None:
    opened = look(journal)
    opened.server.close()

    expect(opened.page.get_by_role("alert")).to_contain_text("otel-audit view has ended")
    opened.said[:] = [each for each in opened.said if "ERR_CONNECTION_REFUSED" not in each]
