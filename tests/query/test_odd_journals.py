"""DuckDB reads whole segments itself. However odd a journal is, it is answered as the journal's own reader reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from otel_audit import AuditEvent, AuditPrincipal, AuditResource
from otel_audit.event import AuditAction
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters, Place
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.sorting import SortingStore
from otel_audit.stores.store import Kind, Stored
from tests.recording import recorder

NAMES = ["alice", "CORP\\dave", 'a"b', "Ünï\u2028", "a\nb", "12345", "/x/12345", "1.5", "\U0001f600"]
Files = dict[str, bytes]


class ReadLineByLine(SortingStore):
    """A journal none of whose files DuckDB sees."""

    kind = Kind.JOURNAL

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.where = str(directory)
        self._store = DirectoryStore(directory)

    def contents(self) -> Iterator[Stored]:
        return self._store.contents()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Two streams of several segments each."""
    directory = tmp_path_factory.mktemp("journal")
    for stream in range(2):
        with recorder(directory) as audit:
            for number, name in enumerate(NAMES):
                audit.log(
                    AuditEvent(
                        event_type="http.request",
                        outcome=["success", "deny", "odd"][number % 3],
                        principal=AuditPrincipal(username=name, id=None if stream else f"id-{name}"),
                        action=AuditAction(mcp_tool=name, path=name),
                        resource=AuditResource(type="table", name=name),
                        detail="x" * 200,
                    )
                )
    found: Files = {}
    for path in sorted(directory.glob("*-*.00000001.jsonl")):
        lines = path.read_bytes().splitlines(keepends=True)
        for number in range(3):  # as if it had been rotated: only the first segment needs its header to be read
            found[path.name.replace(".00000001.", f".{number + 1:08d}.")] = b"".join(lines[number * 4 : number * 4 + 4])
    return found


def replaced(old: bytes, new: bytes) -> Any:
    return lambda lines, at: [*lines[:at], lines[at].replace(old, new, 1), *lines[at + 1 :]]


def put_in(*others: bytes) -> Any:
    return lambda lines, at: [*lines[:at], *others, *lines[at:]]


HARM = {
    "torn": lambda lines, at: [*lines[:at], lines[at][: len(lines[at]) // 2]],
    "a torn line that is JSON": lambda lines, at: [*lines[:at], lines[at].rstrip(b"\n")],
    "joined": lambda lines, at: [*lines[:at], lines[at][:50] + lines[at], *lines[at + 1 :]],
    "joined whole": lambda lines, at: [*lines[:at], lines[at].rstrip(b"\n") + lines[at], *lines[at + 1 :]],
    "gone": lambda lines, at: [*lines[:at], *lines[at + 1 :]],
    "copied": lambda lines, at: [*lines, lines[at]],
    "swapped": lambda lines, at: [*lines[at:], *lines[:at]],
    "three numbers for three others": lambda lines, at: [lines[0], lines[0], *lines[2:]],
    "block of NULs": put_in(b"\0" * 64 + b"\n"),
    "NULs at the end": lambda lines, at: [*lines, b"\0" * 5000],
    "blank line": put_in(b"\n"),
    "spaces": put_in(b"   \n"),
    "carriage return": lambda lines, at: [*lines[:at], lines[at].replace(b"\n", b"\r\n"), *lines[at + 1 :]],
    "byte that is no UTF-8": replaced(b"xxx", b"x\xffx"),
    "quote gone": replaced(b'"principal"', b'"principal'),
    "another byte": replaced(b"xxx", b"xyx"),
    "escape by number": replaced(b'"alice"', b'"\\u0061lice"'),
    "escaped slash": replaced(b"/x/12345", b"\\/x\\/12345"),
    "half a surrogate": replaced(b"xxx", b"\\ud800"),
    "control character": replaced(b"xxx", b"x\x01x"),
    "number beyond a double": replaced(b'"detail"', b'"big":1e999,"detail"'),
    "number for a text": replaced(b'"12345"', b"12345"),
    "number with an exponent": replaced(b'"12345"', b"1.2345e4"),
    "object for a text": replaced(b'"username":"alice"', b'"username":{ "alice" : [1.5e3, true, "/x/12345"] }'),
    "null for a text": replaced(b'"username":"alice"', b'"username":null'),
    "key twice": replaced(b'"username":', b'"username":"other","username":'),
    "time that is none": replaced(b'"time_ns":1', b'"time_ns":-1'),
    "number beyond 64 bits": replaced(b'"time_ns":1', b'"time_ns":99999999991'),
    "array": put_in(b"[]\n"),
    "word": put_in(b"true\n"),
    "line of another stream": replaced(b'"stream_id":"0', b'"stream_id":"1'),
    "long line": replaced(b"xxx", b"x" * 2_000_000),
}
harms = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(sorted(HARM)), st.integers(0, 3)), max_size=5)
words = st.sampled_from(
    [*NAMES, "*", "a*", "*12345*", "*1500*", "1.5", "12345.0", "*true*", "table/*", "denied", "success"]
)
filters = st.builds(
    Filters,
    words=st.dictionaries(
        st.sampled_from(["actor", "tool", "path", "target", "outcome", "type"]),
        st.lists(words, min_size=1, max_size=2),
        max_size=2,
    ),
    text=st.sampled_from(["", "ALICE", "ünï", "12345"]),
)


def harmed(files: Files, harm: Sequence[tuple[int, str, int]]) -> Files:
    found = dict(files)
    for number, kind, at in harm:
        name = sorted(found)[number]
        lines = found[name].splitlines(keepends=True)
        if lines and at < len(lines):
            found[name] = b"".join(HARM[kind](lines, at))
    return found


def answers(trail: TrailDatabase, asked: Sequence[Filters]) -> list[object]:
    """Return what is said, but for the service, which a torn header tells to one of the readers only."""
    said: list[object] = []
    for each in asked:
        whole = list(trail.find(each))
        said += [whole, list(trail.find(each, 3))]
        question, values = trail.select(each, 4)
        said.append(list(trail.rows(f"SELECT * EXCLUDE (service) FROM ({question})", values)[1]))
        if whole:
            middle = whole[len(whole) // 2].place
            if middle.time_ns is not None:
                said.append(list(trail.find(Filters(each.words, text=each.text, before=Place(*middle)), 3)))
                said.append(list(trail.find(Filters(each.words, text=each.text, since_ns=middle.time_ns), 3)))
    order = "ORDER BY ALL"
    for question in ("SELECT * EXCLUDE (service) FROM events", "SELECT actor_name, count(*) FROM events GROUP BY ALL"):
        said.append(list(trail.rows(f"{question} {order}")[1]))
    return said


@settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    harm=harms,
    open_streams=st.sets(st.integers(0, 1)),
    again=st.none() | harms,
    asked=st.lists(filters, min_size=1, max_size=3),
)
def test_an_odd_journal_is_answered_as_its_own_reader_reads_it(
    files: Files,
    tmp_path_factory: pytest.TempPathFactory,
    harm: Sequence[tuple[int, str, int]],
    open_streams: set[int],
    again: Sequence[tuple[int, str, int]] | None,
    asked: Sequence[Filters],
) -> None:
    directories = []
    for these in (harm,) if again is None else (harm, again):  # the second: another copy of the same streams
        directory = tmp_path_factory.mktemp("odd")
        for name, content in harmed(files, these).items():
            (directory / name).write_bytes(content)
        for number in open_streams:
            stream_id = sorted({name[:36] for name in files})[number]
            (directory / f"{stream_id}.writer.lock").touch()
        directories.append(directory)

    with ExitStack() as stack:
        stores = [stack.enter_context(DirectoryStore(each)) for each in directories]
        line_by_line = [stack.enter_context(ReadLineByLine(each)) for each in directories]
        fast = stack.enter_context(TrailDatabase(stores))
        slow = stack.enter_context(TrailDatabase(line_by_line))

        for one, other in zip(answers(fast, asked), answers(slow, asked), strict=True):
            assert one == other
        assert fast.gathered.damaged + fast.gathered.unfinished == slow.gathered.damaged
    for directory in directories:
        for path in directory.iterdir():
            path.unlink()
        os.rmdir(directory)
