"""What the page leaves in the access trail."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import expect

from otel_audit.access import AccessLog
from tests.cli.test_view import looks_in
from tests.viewing.opened import Open
from tests.viewing.trails import ALICE, logging

pytestmark = pytest.mark.processes


def test_a_page_that_follows_is_one_look_in_the_access_trail(look: Open, journal: Path, tmp_path: Path) -> None:
    access = AccessLog.from_environment({"OTEL_AUDIT_ACCESS_LOG": str(tmp_path / "access")})
    with closing(access):
        opened = look(journal, access=access)
        with logging(journal) as audit:
            opened.page.get_by_role("button", name="Follow").click()
            for number in range(5):
                audit.log_http_request(method="GET", path=f"/new/{number}", status_code=200, principal=ALICE)
                expect(opened.rows().first).to_contain_text(f"/new/{number}")
        opened.page.locator("#f-actor").fill("alice")
        expect(opened.page.locator("#count")).to_have_text("15 events")
        opened.rows().locator("button").first.click()
        expect(opened.page.locator("#event pre")).to_contain_text("/new/4")

    looked = [each["attributes"].get("access.filters", []) for each in looks_in(tmp_path / "access")]
    asked = [each for place, each in enumerate(looked) if each not in looked[:place]]
    assert len(looked) == 2 * len(asked)  # each begins and ends once
    typed = [each for each in asked if each and not each[0].startswith("event=")]
    assert sorted(typed) == [["actor=alice"], ["suggest=actor:"], ["suggest=actor:alice"]]
    assert [] in asked
    assert len([each for each in asked if each and each[0].startswith("event=")]) == 1
