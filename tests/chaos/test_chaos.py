"""The chaos itself, short: `python -m tests.chaos` as anybody runs it. The long form is the same with more seconds."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.servers import COLLECTOR, poll

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]


def command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tests.chaos", "--json", "--keep", str(directory), *options]


def environment() -> dict[str, str]:
    return {**os.environ, COLLECTOR.variable: str(COLLECTOR.path())}


def chaos(directory: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The result of a run with one contender, and everything that it said."""
    done = subprocess.run(
        command(directory, *options),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    print(done.stderr)  # the seed
    assert done.stdout, done.stderr
    (result,) = json.loads(done.stdout)
    assert done.returncode == (0 if result["kept_its_word"] or result["contender"] == "stock" else 1)
    return result, done.stderr


def processes_of(directory: Path) -> list[str]:
    """Every process of a run that keeps its files there, whoever started it."""
    return [process.name for process in Path("/proc").glob("[0-9]*") if str(directory) in words_of(process)]


def words_of(process: Path) -> str:
    """Its command line and its environment; nothing once it has ended, nor of another user."""
    try:
        return ((process / "cmdline").read_bytes() + (process / "environ").read_bytes()).decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def test_nothing_acknowledged_is_lost_whatever_is_killed_hung_or_full(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    retention = ["--retention"] if seed % 2 else []  # each has its turn

    result, said = chaos(tmp_path, "--ours", "--seconds", "50", "--seed", str(seed), *retention)

    assert result["problems"] == [], said
    assert result["kept_its_word"]
    delivery = result["delivery"]
    assert delivery["lost"] == delivery["invented"] == 0
    assert delivery["delivered"] == delivery["acknowledged"] > 100  # a hundred times as many where nothing else runs
    assert delivery["intended"] == delivery["acknowledged"] + delivery["refused"] + delivery["unanswered"]
    assert min(result["kills"].values()) >= 2, result["kills"]
    assert result["streams"] > 4
    assert result["forks"] > 0
    if result["fills"] is None:
        assert "no disk will be full" in said
        pytest.skip("nothing was lost, but no disk was full: a small tmpfs cannot be mounted (needs root)")
    else:
        assert result["fills"] >= 2


def test_the_same_harness_judges_the_stock_processor(tmp_path: Path) -> None:
    result, said = chaos(tmp_path, "--stock", "--seconds", "20")

    # How much it loses depends on the moment of each kill: the table in the README is of a longer run.
    delivery = result["delivery"]
    assert delivery["acknowledged"] == delivery["delivered"] + delivery["lost"] > 0, said
    assert delivery["invented"] == 0, said


def test_a_run_that_is_ended_before_its_time_leaves_no_process_and_no_disk(tmp_path: Path) -> None:
    with subprocess.Popen(
        command(tmp_path, "--ours", "--seconds", "120"), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    ) as run:
        try:
            poll(lambda: list(tmp_path.glob("ours/ledger/*")), what="a writer that has begun")
            poll(lambda: len(processes_of(tmp_path)), until=lambda count: count >= 3, what="the crew")

            run.terminate()
            run.wait(120)
        finally:
            run.kill()

    assert processes_of(tmp_path) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
