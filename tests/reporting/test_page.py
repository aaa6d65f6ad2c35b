"""The page of a report: nothing in an event changes it, it needs nothing, and it can be read without seeing it."""

from __future__ import annotations

import time
from base64 import b64encode
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from otel_audit import AuditEvent, AuditPrincipal, AuditResource
from otel_audit.event import AuditAction, AuditSource
from otel_audit.journal.line import GAP
from otel_audit.notices import escaped
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters
from otel_audit.reporting.activity import activity_in
from otel_audit.reporting.page import page_of
from otel_audit.reporting.report import TrailReport
from otel_audit.stores.location import open_store
from otel_audit.verification.findings import Class, Finding, LedgerReport, Report, StreamReport
from tests.cli.journals import a_journal
from tests.reporting.pages import Page

HARMLESS = "harmless"
ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</td></tr></table></main><h1>PROVEN</h1>",
    "</title></style><style>*{display:none}</style>",
    "<!-- ",
    "<![CDATA[",
    "&lt;script&gt; &#60;b&#62;",
    "<svg/onload=alert(1)>",
    "javascript:alert(1)",
    "\x00\x08\x1b]0;title\x07\r\n",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "\u2028\u2029",
    "{{7*7}} ${7*7} %(x)s %s {0}",
    "a" * 5000,
    "Ünï 😀 العربية",
]


def page_with(text: str, directory: Path) -> str:
    """The page of a report in which a text stands wherever an event, a service, a gap or a finding can have one."""
    journal = a_journal(directory, service=text)
    hour_ns = 3600 * 10**9
    now_ns = time.time_ns() // hour_ns * hour_ns
    kind: Any = text
    principal = AuditPrincipal(username=text, id=f"{text}1", issuer=text, on_behalf_of=text, kind=kind)
    for event_type, outcome in ((text, text), (text, "denied"), ("authn.failure", "failure"), ("authn.x", "denied")):
        event = AuditEvent(
            event_type=event_type,
            outcome=outcome,
            event_id=text,
            principal=principal,
            source=AuditSource(ip=text),
            action=AuditAction(mcp_tool=text, path=text, method=text),
            resource=AuditResource(type=text, name=text),
            reason=text,
            detail=text,
        )
        journal.append("", event.to_jsonl().encode("utf-8", "replace"), now_ns, now_ns)
    early = AuditEvent(event_type="x", outcome="success")
    journal.append("", early.to_jsonl().encode(), now_ns - 5 * hour_ns, now_ns)
    assert journal.stream is not None
    journal.stream.write_system(GAP, {"reason": text, "lines": 1, "by_reason": {text: {"count": 1}}}, now_ns)
    journal.close()
    asked = Filters({"actor": [f"{text}1"], "service": [text]}, since_ns=now_ns - 2 * hour_ns)
    with open_store(directory) as store, TrailDatabase([store]) as database:
        activity = activity_in(database, asked, rows_max=50)
        gathered = database.gathered
    ledger = LedgerReport(text, 1, text, now_ns, 1, 1, text, text, now_ns, f"{text}\n{text}\n")
    verification = Report(
        text,
        now_ns,
        (text,),
        [Finding(weight, text, text, 1, text) for weight in Class],
        [StreamReport(text, text, text)],
        [ledger],
    )
    report = TrailReport(text, now_ns, asked, activity, gathered, text, verification)
    return page_of(report, rows_max=50)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(page_with(HARMLESS, tmp_path_factory.mktemp("harmless")))


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_no_text_of_an_event_changes_the_elements_of_a_page(attack: str, harmless: Page, tmp_path: Path) -> None:
    page = Page(page_with(attack, tmp_path))

    # A note has as many lines as it has; all else is the same.
    assert page.shape == harmless.shape
    assert page.comments == []
    assert all(char.isprintable() or char == "\n" for char in page.text)
    assert escaped(attack)[:100] in page.text


def test_a_text_of_an_event_is_in_every_part_of_the_page(harmless: Page) -> None:
    """Or the attacks would attack nothing."""
    parts = harmless.text.split("\n")
    assert sum(part.count(HARMLESS) for part in parts) > 50


def test_a_page_loads_and_runs_nothing(harmless: Page) -> None:
    style = next(text for text in harmless.texts if "color-scheme" in text)
    policy = next(each.attributes["content"] for each in harmless.all("meta") if "http-equiv" in each.attributes)
    names = {name for each in harmless.elements for name in each.attributes}

    hashed = b64encode(sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{hashed}'; base-uri 'none'; form-action 'none'"
    assert "url(" not in style
    assert "@import" not in style
    assert {each.name for each in harmless.elements}.isdisjoint({"script", "link", "img", "iframe", "form", "object"})
    assert names.isdisjoint({"style", "src", "srcset", "action"})
    assert not [name for name in names if name.startswith("on")]
    assert all((each.attributes["href"] or "").startswith("#") for each in harmless.all("a"))


def test_the_policy_stands_before_what_it_is_about(harmless: Page) -> None:
    names = [each.name for each in harmless.elements]

    assert names.index("style") > next(
        at for at, each in enumerate(harmless.elements) if "http-equiv" in each.attributes
    )


def test_a_page_can_be_read_by_ear(harmless: Page) -> None:
    ids = [each.attributes["id"] for each in harmless.elements if "id" in each.attributes]
    headings = [int(each.name[1]) for each in harmless.elements if each.name in ("h1", "h2", "h3")]

    assert harmless.all("html")[0].attributes == {"lang": "en"}
    assert len(harmless.all("main")) == len(harmless.all("title")) == headings.count(1) == 1
    assert len(set(ids)) == len(ids)
    assert {(each.attributes["href"] or "")[1:] for each in harmless.all("a")} <= set(ids)
    assert {each.attributes["aria-labelledby"] for each in harmless.all("section")} <= set(ids)
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert len(harmless.all("caption")) == len(harmless.all("table"))
    assert all("scope" in each.attributes for each in harmless.all("th"))
    assert all("svg" not in each.inside or each.name == "rect" for each in harmless.elements)


def test_a_page_is_of_bounded_size(tmp_path: Path) -> None:
    page = page_with("<" * 10_000, tmp_path)

    assert len(page) < 250_000
