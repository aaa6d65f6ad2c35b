"""The benchmark is a command of this project: it must work. What it measures is not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="a source distribution has no benchmarks"),
]


class Run(NamedTuple):
    """What a run printed, and what it wrote."""

    printed: str
    measured: Any


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    written = tmp_path_factory.mktemp("benchmark") / "all.json"
    size = ["--rounds", "1", "--server-seconds", "0.2", "--streams", "5", "--call-events", "50"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *size, "--delivery-events", "1200", "--json", str(written)],
        cwd=ROOT,
        env={**os.environ, "OTEL_BLRP_MAX_QUEUE_SIZE": "1"},  # a shell that is not at its defaults
        capture_output=True,
        text=True,
        timeout=500,  # some twenty servers start: a hang shall end it, and not a busy machine
    )
    assert done.returncode == 0, done.stderr
    return Run(done.stdout, json.loads(written.read_text()))


@pytest.fixture
def measured(run: Run) -> Any:
    return run.measured


def test_the_benchmark_prints_every_contender_its_ratio_and_the_machine(run: Run) -> None:
    for expected in (
        "Feast AuditLogger",
        "structlog",
        "OTel SDK",
        "otel_audit",
        "fsync",
        "AuditMiddleware",
        "uvicorn",
        ">= 0.85",
        "hostile",
        "over gRPC",
        "shipped by another process",
        "import otel_audit",
        "otel-audit status",
        "Goals",
        "ratio",
        "lost",
        "cpus",
        "python",
    ):
        assert expected in run.printed


def test_each_goal_stands_beside_what_was_found(measured: Any) -> None:
    goals = {goal["what"]: goal for goal in measured["goals"]}

    assert goals["events a second / the OTel SDK with a queue for all events"]["at_least"] == 2.5
    assert [what for what, goal in goals.items() if goal["found"] is None] == (
        [] if find_spec("feast") else ["a call / Feast's with its file sink"]
    )


def test_a_contender_that_is_not_installed_says_how_to_get_it(measured: Any) -> None:
    missing = measured["missing"]

    assert ("Feast AuditLogger, file sink" in missing) == (find_spec("feast") is None)
    assert all("pip install" in remedy for remedy in missing.values())


def test_everything_that_we_log_in_the_benchmark_arrives(measured: Any) -> None:
    assert measured["delivery"]["otel_audit"]["lost_share"]["max"] == 0
    assert measured["call"]["otel_audit"]["mean_us"]["min"] > 0
    assert all(numbers["us"]["median"] > 0 for numbers in measured["middleware"].values())
    assert all(numbers["per_second"]["min"] > 0 for numbers in measured["server"].values())
    assert all(numbers["us_per_event"]["min"] > 0 for numbers in measured["durability"].values())
    assert measured["options"]["delivery_events"] == 1200


def test_the_speed_of_verify_is_measured_beside_a_plain_hash() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.verifying", "--lines", "2000", "--rounds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    rows = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert rows == ["SHA-256 of each line", "verify, by the chain", "verify, with the tree"]
    assert done.stdout.count(" of the plain hash") == 3
    assert "goal >= 400,000" in done.stdout
    assert "goal >= 150,000" in done.stdout


def test_the_cost_of_the_ledger_is_measured_beside_a_process_without_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ledger", "--events", "100", "--rounds", "1", "--processes", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert [line.partition("  ")[0] for line in done.stdout.splitlines()] == ["without the ledger", "with it"]


def test_questions_to_a_trail_are_measured_beside_a_plain_read() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.query", "--events", "2000", "--rounds", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.count("of one person") == 6
    assert "a plain read of the journal" in done.stdout
