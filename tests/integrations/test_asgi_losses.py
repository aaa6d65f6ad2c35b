"""What cannot be recorded is refused or served, as the loss rule says."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from otel_audit import AuditMiddleware
from otel_audit.policy import read_policy
from otel_audit.settings import OnLoss
from tests.integrations.serving import a_logger, an_app, events_of, fill, get, greet, served


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.mark.processes
@pytest.mark.parametrize("durability", ["os", "fsync"])
def test_a_request_that_cannot_be_recorded_is_refused_where_the_rule_is_closed(
    small_disk: Path, durability: str
) -> None:
    called: list[str] = []

    async def act(request: Request) -> Response:
        called.append(request.url.path)
        return PlainTextResponse("done")

    audit = a_logger(small_disk / "audit", on_loss=OnLoss.CLOSED, settings={"durability": durability})
    app = AuditMiddleware(an_app(Route("/act", act)), audit=audit, exclude=["/ready"])

    with served(app) as server:
        assert httpx.get(f"{server.url}/act").status_code == 200
        fill(audit, small_disk)
        refused = httpx.get(f"{server.url}/act")
        assert httpx.get(f"{server.url}/ready").status_code == 404  # what leaves no event needs none

    assert refused.status_code == 503
    assert called == ["/act"]
    assert refused.headers["retry-after"] == "5"
    assert str(small_disk) not in refused.text


@pytest.mark.processes
def test_a_request_that_cannot_be_recorded_is_served_where_the_rule_is_open(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    audit = a_logger(small_disk / "audit")

    with served(AuditMiddleware(an_app(), audit=audit)) as server:
        fill(audit, small_disk)
        before = audit.stats()
        assert httpx.get(server.url).status_code == 200
    after = audit.stats()

    assert (after.emitted, after.dropped) == (before.emitted + 1, before.dropped + 1)
    assert "events are lost" in capfd.readouterr().err


@pytest.mark.parametrize("outcome", ["success", "denied"])
def test_a_rule_of_the_policy_closes_the_requests_that_it_is_about(
    tmp_path: Path, directory: Path, outcome: str
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{route: /status/*, on_loss: closed}, {route: /quiet, keep: false}]")
    audit = a_logger(directory, policy=read_policy(policy))
    app = AuditMiddleware(an_app(Route("/quiet", greet)), audit=audit)
    status = 200 if outcome == "success" else 403

    events = events_of(app, directory, lambda s: [get(p)(s) for p in ("/", "/quiet", f"/status/{status}")])

    assert [(event["action"]["path"], event["outcome"]) for event in events] == [
        ("/", "success"),
        (f"/status/{status}", "unknown"),
        (f"/status/{status}", outcome),
    ]
    assert events[2]["parent_id"] == events[1]["event_id"]
