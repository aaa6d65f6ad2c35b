"""Trails to verify: one that the real ledger is told of, and one that a test may forge."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_audit.signing.keys import SigningKey
from tests.journal.ledger.telling import a_ledger
from tests.verification.forge import Forge
from tests.verification.kept import Kept
from tests.verification.proven_trails import Trail


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path, a_ledger(tmp_path))


@pytest.fixture
def identity() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def forge(tmp_path: Path, identity: SigningKey) -> Forge:
    """Two epochs, with a stream of two segments in each."""
    forge = Forge(tmp_path / "journal", identity=identity)
    forge.honest_stream(segments=2)
    forge.ledger.next_epoch()
    forge.honest_stream(segments=2)
    return forge.write()


@pytest.fixture(params=["archive", "loki"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    """What was kept off the host: the same lines, in an archive and in a log store."""
    return Kept(request.param, tmp_path)
