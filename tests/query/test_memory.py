"""A trail that is larger than the memory that a command may take is searched and packed all the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LINES = 240_000
SEGMENTS = 6
ALLOWED = "256MB"
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
database._MEMORY = sys.argv[1]
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
                time_ns = 1790000000000000000 + seq * 7919 % LINES * 10**9
                file.write(LINE % (seq, seq % 1000, padding, seq, time_ns, STREAM_ID.encode(), seq))
    return directory


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("command", ["query --json", "pack"])
def test_memory_is_bounded_however_large_the_trail_is(journal: Path, tmp_path: Path, command: str) -> None:
    name, *options = command.split()
    arguments = [name, str(journal), *([str(tmp_path / "packed")] if name == "pack" else options)]

    with open(tmp_path / "answer", "wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, ALLOWED, *arguments], stdout=file, stderr=subprocess.PIPE, check=False
        )

    assert done.returncode == 0, done.stderr[-2000:]
    most = re.search(rb"VmHWM:\s+(\d+) kB", done.stderr)
    assert most is not None
    assert int(most[1]) / 1024 < BOUND_MB < sum(path.stat().st_size for path in journal.iterdir()) / 2**20
    answer = (tmp_path / "answer").read_bytes().splitlines()
    if "--json" in options:
        times = [int(line.split(b'"time_ns":')[1].split(b",")[0]) for line in answer]
        assert times == sorted(times, reverse=True)
        assert len(set(times)) == len(answer) == LINES
