"""A trail that its ledger is told of, for the tests of proofs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.journal.ledger.telling import a_ledger
from tests.verification.proven_trails import Trail


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path, a_ledger(tmp_path))
