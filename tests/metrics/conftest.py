"""A reader of metrics, and a real server that answers as a test says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.delivery.audited_server import AuditedServer
from tests.metrics.reader import Reader


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def server() -> Iterator[AuditedServer]:
    with AuditedServer() as running:
        yield running
