"""Make the picture of `otel-audit view` in the README: a day of a small shop, in a real browser.

Run it by hand, in an environment with the extra `test`, with Pillow, and with Chromium: `python docs/pictures/make.py`.
"""

from __future__ import annotations

import math
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from otel_audit import AuditPrincipal, AuditResource, AuditSource
from otel_audit.event import PrincipalKind
from otel_audit.logger import AuditLogger
from otel_audit.settings import Settings
from otel_audit.stores.directory import DirectoryStore
from otel_audit.trail import Trail
from otel_audit.verification.pins import Pins
from otel_audit.viewing.server import PageServer
from otel_audit.viewing.trail import ViewedTrail

PICTURE: Final = Path(__file__).with_name("view.png")
WIDTH, HEIGHT = 1360, 850
_MORNING: Final = datetime(2026, 11, 27, 6, tzinfo=UTC)
_HOURS: Final = 14
_EVENTS: Final = 2400


def a_day(directory: Path) -> None:
    """Write the trail of a day, the same each time but for its ids."""
    chance = random.Random(12)
    moments = _moments(chance)
    trail = Trail(
        Settings.load({"OTEL_SERVICE_NAME": "shop"}, {"directory": str(directory), "export": "none", "ledger": True})
    )
    audit = AuditLogger(trail, clock=lambda: next(moments))
    for number in range(_EVENTS):
        _log(audit, chance, number)
    audit.close()


def _moments(chance: random.Random) -> Iterator[int]:
    """Yield times that are denser in the middle of the morning and of the afternoon."""
    hours = [hour / 12 for hour in range(_HOURS * 12)]
    weights = [0.15 + math.exp(-((hour - 4) ** 2) / 3) + 0.8 * math.exp(-((hour - 9) ** 2) / 4) for hour in hours]
    chosen = sorted(hour + chance.random() / 12 for hour in chance.choices(hours, weights, k=_EVENTS))
    yield from (int((_MORNING.timestamp() + hour * 3600) * 1e9) for hour in chosen)
    while True:
        yield int((_MORNING.timestamp() + _HOURS * 3600) * 1e9)


def _log(audit: AuditLogger, chance: random.Random, number: int) -> None:
    name = chance.choices(["alice", "bob", "carol", "dmitri", "erin"], [6, 4, 3, 2, 1])[0]
    person = AuditPrincipal(username=name, id=f"00u{sum(name.encode())}", issuer="https://id.example.com")
    agent = AuditPrincipal(username="agent-7", kind=PrincipalKind.SERVICE, on_behalf_of=chance.choice(["bob", "alice"]))
    address = AuditSource(ip=f"10.4.0.{sum(name.encode()) % 200}")
    order = chance.randrange(400, 900)
    kind = chance.random()
    is_attack = 1450 < number < 1530
    if is_attack and kind < 0.7:
        audit.log_authn(
            outcome="failure",
            principal=AuditPrincipal(username="mallory"),
            source=AuditSource(ip="203.0.113.9"),
            detail="wrong user or password",
        )
    elif kind < 0.6:
        path, took = chance.choice([f"/orders/{order}", "/orders", "/customers/17"]), chance.lognormvariate(2.5, 0.7)
        audit.log_http_request(
            method="GET", path=path, status_code=200, principal=person, source=address, duration_ms=took
        )
    elif kind < 0.7:
        audit.log_http_request(
            method="POST", path="/orders", status_code=201, principal=person, source=address, duration_ms=31.5
        )
    elif kind < 0.76:
        table = AuditResource(type="table", name="salaries")
        audit.log_authz(outcome="deny", principal=person, resource=table, detail="needs the role payroll")
    elif kind < 0.94:
        tool, outcome = chance.choice(["get_order", "search_orders"]), "success" if chance.random() < 0.93 else "error"
        audit.log_mcp_call(tool_name=tool, principal=agent, outcome=outcome, duration_ms=chance.lognormvariate(3, 0.5))
    elif kind < 0.98:
        audit.log_authz(
            outcome="allow", principal=person, resource=AuditResource(type="table", name="orders"), detail="role reader"
        )
    else:
        audit.log_http_request(
            method="DELETE",
            path=f"/orders/{order}",
            status_code=403,
            principal=person,
            outcome="denied",
            source=address,
        )


def shown(page: Page, url: str) -> None:
    """Open the page, and in it an event that was denied."""
    page.goto(url)
    page.get_by_role("button", name="Consistent").wait_for()
    page.locator("#rows tr", has_text="deny").first.click()
    page.get_by_role("button", name="Download the proof").wait_for()


def main() -> int:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        print("expected Chromium, got none: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "var" / "lib" / "otel-audit" / "shop"
        directory.mkdir(parents=True)
        a_day(directory)
        trail = ViewedTrail(lambda: DirectoryStore(directory), Pins())
        trail.where = "/var/lib/otel-audit/shop"  # as a reader would have it
        with closing(trail), closing(PageServer(trail)) as server, sync_playwright() as playwright:
            trail.start()
            server.start()
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            shown(page, server.url)
            time.sleep(0.5)  # for the picture of a page at rest
            page.screenshot(path=PICTURE)
            browser.close()
    with Image.open(PICTURE) as picture:
        picture.convert("RGB").quantize(256).save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
