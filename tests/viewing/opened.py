"""The page of a trail in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from playwright.sync_api import Locator, Page, ViewportSize, expect

from otel_audit.viewing.server import PageServer

__all__ = ["WAIT_MS", "WINDOW", "Open", "Opened"]

WAIT_MS: Final = 30_000
WINDOW: Final = ViewportSize(width=1360, height=850)

expect.set_options(timeout=WAIT_MS)


@dataclass
class Opened:
    """The page of a trail in a browser, with all that it asked for and what its console said."""

    page: Page
    server: PageServer
    requests: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def rows(self) -> Locator:
        return self.page.locator("#rows tr")

    def go(self, query: str = "") -> None:
        self.page.goto(self.server.url + query)
        expect(self.page.locator("#verdict-word")).to_have_text(re.compile("Consistent|Broken"))
        expect(self.page.locator("#reading")).to_be_hidden()
        expect(self.page.locator("#count")).to_have_text(re.compile("event"))


Open = Callable[..., Opened]
