"""Tests of fastapi_app.py: what is recorded, and that nothing is left out. `pytest test_fastapi_app.py`.

The fixtures come with otel-audit. There is nothing to import and nothing to set up.
"""

import importlib
import sys

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from otel_audit import AuditLogger
from otel_audit.testing.coverage import AuditCoverage
from otel_audit.testing.events import AuditEvents


@pytest.fixture
def app(audit_trail: AuditLogger, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The application, imported anew: it makes its logger when it is imported, here with the trail of the test."""
    monkeypatch.delitem(sys.modules, "fastapi_app", raising=False)
    application: FastAPI = importlib.import_module("fastapi_app").app
    return application


def test_a_reader_may_not_delete_and_that_is_recorded(app: FastAPI, audit_events: AuditEvents) -> None:
    """One event says who asked, one what was decided, and one what became of the request."""
    answer = TestClient(app).delete("/orders/7", headers={"Authorization": "Bearer secret-of-bob"})

    assert answer.status_code == 403
    audit_events.one(event_type="authn.success", principal="bob")
    audit_events.one(event_type="authz.decision", outcome="deny", policy_id="orders.delete")
    audit_events.one(event_type="http.request", outcome="denied", status_code=403, principal="bob")


def test_no_token_is_recorded(app: FastAPI, audit_events: AuditEvents) -> None:
    """Nor is any part of it."""
    TestClient(app).get("/orders/8", headers={"Authorization": "Bearer secret-of-ann"})

    assert "secret-of-ann" not in "".join(event.to_jsonl() for event in audit_events)


def test_every_route_leaves_an_event(app: FastAPI, audit_coverage: AuditCoverage) -> None:
    """A route that is added later is looked at too."""
    audit_coverage.every_route(app, except_for=["/health"])
