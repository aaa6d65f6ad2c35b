"""A reader of metrics, and a real server that answers as a test says."""

from __future__ import annotations

import pytest

from tests.metrics.reader import Reader


@pytest.fixture
def reader() -> Reader:
    return Reader()
