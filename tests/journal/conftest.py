"""A disk of the kind that services have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journal.disks import Unmountable, ext4


@pytest.fixture
def ext4_disk(tmp_path: Path) -> Iterator[Path]:
    """A real ext4 of 4 MiB.

    Skipped where the kernel has no loop devices, as in many containers: nothing can be installed for that.
    """
    try:
        with ext4(tmp_path / "disk", 4096) as mounted:
            yield mounted
    except Unmountable as error:
        pytest.skip(f"a small ext4 cannot be mounted (needs root and loop devices): {error}")
