"""A real server that answers as a test says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.delivery.audited_server import AuditedServer


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[AuditedServer]:
    with AuditedServer() as running:
        yield running
