"""Processes under users of their own, on a machine where those may not even see the code that they are to run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.end_to_end.test_main_path import ROOT

__all__ = ["as_user", "require_other_users"]

_OTHERS_MAY_ENTER = 0o001


def as_user(
    uid: int,
    gid: int,
    command: Sequence[str | Path],
    *,
    umask: int,
    shown: Sequence[Path],
    read_only_root: bool = False,
) -> list[str]:
    """The command line that runs `command` as that user, in that group alone. It needs root.

    The interpreter, this checkout and the directories `shown` can be reached, wherever they are: in a mount namespace
    of the process, whatever hides them from other users is covered. Their own permissions are as they were.

    With `read_only_root`, as a pod may demand, only `shown` and /var/tmp can be written, and no capability can be had.
    """
    needed = sorted({Path(sys.prefix), Path(sys.base_prefix), ROOT, *shown})
    locked = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"] if read_only_root else []
    run = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *locked, *map(str, command)]
    script = [*_shown(needed), *(_read_only(shown) if read_only_root else []), f"umask {umask:03o}"]
    return ["unshare", "--mount", "sh", "-euc", "\n".join([*script, f"exec {shlex.join(run)}"])]


def _read_only(writable: Sequence[Path]) -> list[str]:
    """Shell commands: what is `writable` gets a mount of its own, and the file system that holds it is read-only."""
    kept = [shlex.quote(str(path)) for path in writable]
    return [
        "mount -t tmpfs -o mode=1777 tmpfs /var/tmp",
        *(f"mount --bind {path} {path}" for path in kept),
        "mount -o remount,bind,ro /",
    ]


def _shown(needed: Sequence[Path]) -> list[str]:
    """Shell commands: take hold of what is needed, cover what hides it, and put it back where it was."""
    hiding = {hidden for path in needed if (hidden := _hidden_by(path)) is not None}
    if not hiding:
        return []
    behind = [path for path in needed if _hidden_by(path) is not None]
    # A tmpfs of its own to keep them in, over a directory that every machine has.
    kept = {path: f"/mnt/{number}" for number, path in enumerate(behind)}
    return [
        "mount -t tmpfs -o mode=755 tmpfs /mnt",
        *(f"mkdir {place} && mount --bind {shlex.quote(str(path))} {place}" for path, place in kept.items()),
        *(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(path))}" for path in sorted(hiding)),
        *(
            f"mkdir -p {shlex.quote(str(path))} && mount --bind {place} {shlex.quote(str(path))}"
            for path, place in kept.items()
        ),
    ]


def _hidden_by(path: Path) -> Path | None:
    """The first directory above it that other users may not enter."""
    for above in reversed(path.parents):
        if not above.stat().st_mode & _OTHERS_MAY_ENTER:
            return above
    return None


def require_other_users() -> None:
    """Skip the test where no process can be started under another user."""
    trial = as_user(20_001, 20_000, [sys.executable, "-c", "import otel_audit"], umask=0o022, shown=[])
    try:
        done = subprocess.run(trial, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        why = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError as error:
        why = str(error)
    if not why:
        return
    says = f"no process can be started under another user (needs root and util-linux): {why}"
    pytest.skip(says)
