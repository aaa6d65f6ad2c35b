"""A small disk for the journal, which can be filled to the last byte and freed again."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SmallDisk", "small_disk"]

_BLOCK = b"\0" * 4096
_LEFT_BYTES = 1 << 20


class SmallDisk:
    """A mounted file system."""

    def __init__(self, mount: Path) -> None:
        self._filler = mount / "filler"

    def fill(self) -> None:
        """No block is free any more. Whoever writes beside it may take some of the last ones."""
        with self._filler.open("ab", buffering=0) as filler:
            with contextlib.suppress(OSError):  # all of it or nothing, so the last blocks, which others take, are left
                os.posix_fallocate(filler.fileno(), 0, self._most_bytes())
            with contextlib.suppress(OSError):
                while filler.write(_BLOCK):
                    pass

    def free(self) -> None:
        """There is room again."""
        self._filler.unlink(missing_ok=True)

    def _most_bytes(self) -> int:
        found = os.statvfs(self._filler.parent)
        return max(len(_BLOCK), found.f_bavail * found.f_frsize - _LEFT_BYTES)


@contextlib.contextmanager
def small_disk(mount: Path, *, mib: int) -> Iterator[SmallDisk | None]:
    """A tmpfs of so many MiB on the directory `mount`, unmounted at the end; None where none can be mounted."""
    mount.mkdir(parents=True, exist_ok=True)
    options = f"size={mib}m,mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield None
        return
    try:
        yield SmallDisk(mount)
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)
