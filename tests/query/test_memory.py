"""A trail that is larger than the memory that a command may take is searched, written and packed all the same."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

LINES = 240_000
SEGMENTS = 6
ALLOWED_MB = "256"
BOUND_MB = 420  # with Python itself, what a scan holds for each core, and what is under way between the two
STREAM_ID = "0199aabb-ccdd-7eef-8011-223344556677"
LINE = (
    b'{"event_type":"http.request","timestamp":"2026-11-29T08:00:00.000Z","request_id":"%d","principal":{"username":'
    b'"user-%d","roles":["reader"],"auth_type":"oidc"},"outcome":"success","detail":"%b","event_id":"%d","time_ns":%d,'
    b'"observed_ns":1790000000000000000,"stream_id":"%b","seq":%d}\n'
)
COMMAND = """
import atexit, sys
from otel_audit.query import database, packing
database._MEMORY_MB = int(sys.argv[1])
database._SORTED_MAX_BYTES = 100 << 20  # as 700 MB stand to the default of 1 GB
database._SLICE_BYTES = 32 << 20
packing._FILE_BYTES = 64 << 20
atexit.register(lambda: sys.stderr.write(open("/proc/self/status").read()))
from otel_audit.cli import main
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("journal")
    seq = 0
    for segment in range(1, SEGMENTS + 1):
        with open(directory / f"{STREAM_ID}.{segment:08d}.jsonl", "wb") as file:
            for _ in range(LINES // SEGMENTS):
                seq += 1
                padding = b"%016x" % (seq * 0x9E3779B97F4A7C15 % 2**64) * 100
                place = seq * 7919 % LINES
                # Most of them within a quarter of a second: parts of equal time would not divide such a burst.
                time_ns = 1790000000000000000 + place * (1000 if place % 8 else 10**9)
                file.write(LINE % (seq, seq % 1000, padding, seq, time_ns, STREAM_ID.encode(), seq))
    return directory


def times_in(answer: Path, command: str) -> list[int]:
    """Return the times of the events in an answer, in its order."""
    if command == "query --json":
        with open(answer, "rb") as file:
            return [int(line.split(b'"time_ns":')[1].split(b",")[0]) for line in file]
    if command == "query --csv":
        with open(answer, newline="") as file:
            return [int(row["time_ns"]) for row in csv.DictReader(file)]
    import duckdb

    files = [str(answer)] if answer.is_file() else [str(path) for path in sorted(answer.rglob("*.parquet"))]
    return [row[0] for row in duckdb.connect().execute("SELECT time_ns FROM read_parquet(?)", [files]).fetchall()]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("command", ["query --json", "query --csv", "query --out", "pack"])
def test_memory_is_bounded_however_large_the_trail_is(journal: Path, tmp_path: Path, command: str) -> None:
    name, *options = command.split()
    answer, printed = tmp_path / "answer", tmp_path / "printed"
    written = [] if command in ("query --json", "query --csv") else [str(answer)]

    with open(printed if written else answer, "wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, ALLOWED_MB, name, str(journal), *options, *written],
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert done.returncode == 0, done.stderr[-2000:]
    most = re.search(rb"VmHWM:\s+(\d+) kB", done.stderr)
    assert most is not None
    assert int(most[1]) / 1024 < BOUND_MB < sum(path.stat().st_size for path in journal.iterdir()) / 2**20
    times = times_in(answer, command)
    assert len(set(times)) == len(times) == LINES
    if name == "query":
        assert times == sorted(times, reverse=True)


@pytest.mark.slow
@pytest.mark.processes
def test_a_question_that_needs_more_memory_ends_with_the_remedy(journal: Path) -> None:
    question = "SELECT line FROM events ORDER BY hash(line)"
    arguments = ["query", str(journal), "--json", "--sql", question]

    done = subprocess.run([sys.executable, "-c", COMMAND, ALLOWED_MB, *arguments], capture_output=True, check=False)

    most = re.search(rb"VmHWM:\s+(\d+) kB", done.stderr)
    assert most is not None
    assert int(most[1]) / 1024 < BOUND_MB
    assert done.returncode == 1
    assert b"narrow it by a time, ask for fewer columns, or sort and group fewer rows" in done.stderr
    assert b"Possible solutions" not in done.stderr
