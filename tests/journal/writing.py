"""How the tests of the journal make one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from otel_audit.journal.cursor import Position
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.journal import Journal, Receipt
from otel_audit.journal.locks import boot_id, host_id
from otel_audit.journal.reader import StreamReader
from otel_audit.journal.stream import StreamWriter


def description() -> dict[str, Any]:
    return {
        "resource": {"service.name": "shop", "service.instance.id": "i-1"},
        "scope": {"name": "otel_audit", "version": "0"},
        "export": ["otlp"],
        "host_id": host_id(),
        "boot_id": boot_id(),
    }


def a_journal(directory: Path, **options: Any) -> Journal:
    return Journal(directory, describe=description, **options)


def event(name: object, **more: Any) -> bytes:
    return json.dumps({"event_type": "test", "event_id": str(name), **more}).encode()


def append(journal: Journal, name: object, **more: Any) -> Receipt:
    now_ns = time.time_ns()
    return journal.append(str(name), event(name, **more), now_ns, now_ns)


def leave_no_room(disk: Path) -> None:
    """Fill a small disk to its last block."""
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        for block_bytes in (4096, 1):
            with contextlib.suppress(OSError):
                while ballast.write(b"\0" * block_bytes):
                    pass
        os.fsync(ballast.fileno())
    with pytest.raises(OSError, match="No space"):
        (disk / "one more").write_bytes(b"\0")


def open_files(directory: Path) -> list[str]:
    """The names of this process's open files in a directory, once for each descriptor; also of those that were removed.

    Not a count of all descriptors: what earlier tests left is closed at any moment.
    """
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)"))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        if path.parent == directory:
            found.append(path.name)
    return sorted(found)


def the_stream(directory: Path) -> StreamFiles:
    (files,) = streams_in(directory)
    return files


def lines_of(files: StreamFiles, position: Position | None = None) -> list[bytes]:
    """Every line that the package's own reader gives, from the position on."""
    reader = StreamReader(files)
    position = position or Position()
    lines: list[bytes] = []
    while True:
        chunk = reader.read(position, max_lines=100, max_bytes=10_000)
        lines += [line.content for line in chunk.lines]
        if chunk.end == position:
            reader.close()
            return lines
        position = chunk.end


def ids_of(lines: list[bytes]) -> list[str]:
    """The ids of the events of the application among the lines."""
    return [event["event_id"] for event in map(json.loads, lines) if "system" not in event]


def assert_chained(lines: list[bytes]) -> None:
    """Each line has the hash and the number that follow from the one before it."""
    for before, after in pairwise(lines):
        event = json.loads(after)
        assert event["prev_hash"] == sha256(before).hexdigest()
        assert event["seq"] == json.loads(before)["seq"] + 1


def start_script(script: str, *arguments: object, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """A Python process in the checkout that talks to the test through its standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )


def said(process: subprocess.Popen[str]) -> str:
    """The next line that the process prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"expected a line, the process ended with {process.wait(120)}"
    return line.strip()


def finish(process: subprocess.Popen[str]) -> None:
    """The process, and every child that inherited its standard input, is told to end; the process has."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait(120)


def the_writer(journal: Journal) -> StreamWriter:
    assert journal.stream is not None
    return journal.stream
