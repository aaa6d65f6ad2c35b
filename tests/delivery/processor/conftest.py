"""A real server, and journals that are delivered to it until the test ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from otel_audit.delivery.outcomes import Exporter
from otel_audit.delivery.processor import Adoption
from otel_audit.delivery.worker import BatchLimits
from tests.delivery.processor.delivered import DEFAULTS, NOBODY, Deliver, Delivered


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def deliver(tmp_path: Path) -> Iterator[Deliver]:
    with ExitStack() as opened:

        def make(*exporters: Exporter, adoption: Adoption = NOBODY, limits: BatchLimits = DEFAULTS) -> Delivered:
            delivered = Delivered(tmp_path / "audit", exporters, adoption, limits)
            opened.callback(lambda: delivered.processor.close(timeout_s=2))
            opened.callback(delivered.journal.close)
            return delivered

        yield make
