"""An asynchronous exception may come between any two steps of an append: Ctrl-C, a soft time limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chain_check import application_events

pytestmark = pytest.mark.processes


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own: an exception may also come into code of pytest's or Hypothesis' inside an append."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.journal.{module}", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize(("durability", "interrupts"), [("os", 10_000), ("fsync", 3000)])
def test_thousands_of_interrupts_inside_append_break_no_chain_and_lose_nothing_acknowledged(
    tmp_path: Path, durability: str, interrupts: int
) -> None:
    done = run("interrupted_writer", tmp_path, interrupts, durability)
    acknowledged, tried = done.stdout.splitlines(), int(done.stderr.split()[-1])

    ids = [each["event_id"] for each in application_events(tmp_path)]
    assert len(acknowledged) >= interrupts // 10
    assert set(acknowledged) <= set(ids)
    assert len(ids) == len(set(ids))
    assert len(ids) <= tried + 1


def test_a_soft_time_limit_in_one_thread_does_not_stop_the_others(tmp_path: Path) -> None:
    acknowledged = set(run("limited_writers", tmp_path, 1000).stdout.splitlines())

    ids = {each["event_id"] for each in application_events(tmp_path)}
    assert len(acknowledged) >= 1000
    assert acknowledged <= ids
    assert {"first", "last"} <= ids
