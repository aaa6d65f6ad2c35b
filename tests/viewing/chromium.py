"""The real browser that the page is tested in: Chromium as the system has it, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, sync_playwright

__all__ = ["chromium"]

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
# Its own look for updates and the like would be requests that the page did not make.
_QUIET: Final = ("--disable-background-networking", "--disable-component-update", "--no-first-run")


@contextmanager
def chromium(downloads: Path) -> Iterator[Browser]:
    """A browser without a window. The test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("the page is tested in Chromium, which is not here: apt-get install chromium")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[*_QUIET, *as_root], downloads_path=str(downloads)
        )
        yield browser
        browser.close()
