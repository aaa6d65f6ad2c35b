"""A browser, and trails whose pages it opens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser

from otel_audit.access import AccessLog
from otel_audit.viewing.server import PageServer
from tests.viewing.chromium import chromium
from tests.viewing.opened import WINDOW, Open, Opened
from tests.viewing.trails import logging, some_events, viewed


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """The page of a trail of 20 events, which no test changes."""
    directory = tmp_path_factory.mktemp("shared") / "journal"
    with logging(directory) as audit:
        some_events(audit, rounds=5)
    with viewed(directory) as trail, closing(PageServer(trail)) as server:
        server.start()
        yield server


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The same for a test alone."""
    with logging(tmp_path / "journal") as audit:
        some_events(audit, rounds=5)
    return tmp_path / "journal"


@pytest.fixture
def look(browser: Browser, shared: PageServer) -> Iterator[Open]:
    """Opens the page of a trail; at the end nothing may have been asked of another machine, and nothing gone wrong."""
    opened: list[Opened] = []
    with ExitStack() as stack:

        def open_page(
            directory: Path | str | None = None, query: str = "", access: AccessLog | None = None, **options: Any
        ) -> Opened:
            server = shared
            if directory is not None:
                trail = stack.enter_context(viewed(directory))
                server = stack.enter_context(closing(PageServer(trail, access=access)))
                server.start()
            context = stack.enter_context(closing(browser.new_context(**{"viewport": WINDOW, **options})))
            each = Opened(context.new_page(), server)
            opened.append(each)
            context.on("request", lambda request: each.requests.append(request.url))
            each.page.on("console", lambda message: each.said.append(f"{message.type}: {message.text}"))
            each.page.on("pageerror", lambda error: each.said.append(f"error: {error}"))
            each.go(query)
            return each

        yield open_page
        for each in opened:
            host, urls = urlsplit(each.server.url).netloc, [url for url in each.requests if not url.startswith("data:")]
            assert {urlsplit(url.removeprefix("blob:")).netloc for url in urls} == {host}
            assert all(each.server.token in url for url in urls if not url.startswith("blob:"))
            assert each.said == []
