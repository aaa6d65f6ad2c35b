"""The JSONL export: the event as its caller gave it, and a file that may be renamed, shared, full or torn."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_audit.delivery.jsonl import ADDED_KEYS, JsonlExporter, JsonlFile, as_given
from otel_audit.delivery.outcomes import Accepted, Batch, Refused, Unavailable
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.journal.cursor import Position
from otel_audit.journal.journal import Journal
from otel_audit.journal.reader import Line, StreamReader
from tests.journal_lines import HEADER, line_of

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.none() | texts
feast_events = st.builds(
    AuditEvent,
    event_type=texts,
    timestamp=texts,
    request_id=texts,
    trace_id=ids,
    span_id=ids,
    jsonrpc_id=ids,
    principal=st.builds(AuditPrincipal, username=texts, roles=st.lists(texts, max_size=3), auth_type=texts),
    source=st.builds(AuditSource, ip=texts, transport=texts),
    action=st.builds(AuditAction, mcp_tool=texts, path=texts),
    resource=st.builds(AuditResource, type=texts, name=texts, actions=st.lists(texts, max_size=3)),
    outcome=texts,
    duration_ms=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    detail=texts,
)
own_fields = st.fixed_dictionaries(
    {},
    optional={
        "status_code": st.integers(100, 599),
        "error_type": texts,
        "reason": texts,
        "policy_id": texts,
        "parent_id": texts,
        "attributes": st.dictionaries(texts | st.sampled_from(sorted(ADDED_KEYS)), texts | st.integers(0, 9)),
        "redacted": st.lists(texts, max_size=3),
        "truncated": st.lists(texts, max_size=3),
    },
)

AN_EVENT = AuditEvent(event_type="http.request", outcome="success", detail="GET / -> 200", event_id="e", trace_flags=1)


def journalled(event: AuditEvent) -> bytes:
    """The line of an event to which the library has added an id and the flags of the span."""
    added = event.model_copy(update={"event_id": "0199aabb-ccdd-7eef-8011-000000000001", "trace_flags": 3})
    tail = line_of(AN_EVENT)
    return added.to_jsonl().encode()[:-1] + tail[tail.rindex(b',"time_ns"') :]


def a_batch(lines: Sequence[bytes]) -> Batch:
    return Batch(HEADER, [Line(line, seq) for seq, line in enumerate(lines, 1)])


@given(feast_events)
def test_an_event_with_feasts_fields_only_comes_back_byte_for_byte(event: AuditEvent) -> None:
    exported = as_given(journalled(event)).decode()

    assert exported == event.to_jsonl()
    assert AuditEvent.model_validate_json(exported).to_jsonl() == exported


@given(feast_events, own_fields)
def test_our_fields_follow_in_the_order_of_the_event_and_only_added_keys_are_gone(
    event: AuditEvent, own: dict[str, object]
) -> None:
    given_event = event.model_copy(update=own)

    assert as_given(journalled(given_event)).decode() == given_event.to_jsonl()


def test_numbers_and_escapes_keep_the_bytes_that_are_stored() -> None:
    line = b'{"event_type":"\\u00e9\xc3\xa9","duration_ms":1.50,"event_id":"x","attributes":{"seq":1, "a":1E2},"seq":9}'

    assert as_given(line) == b'{"event_type":"\\u00e9\xc3\xa9","duration_ms":1.50,"attributes":{"seq":1, "a":1E2}}'


def test_a_real_journal_is_exported_without_the_lines_that_it_makes_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", describe=lambda: {"resource": {}, "scope": {}})
    given_events = [AuditEvent(event_type="x", detail=f"number {number}") for number in range(20)]
    for event in given_events:
        journal.append("id", event.to_jsonl().encode(), 1, 1)
    stream = journal.stream
    assert stream is not None
    reader = StreamReader(stream.files)
    chunk = reader.read(Position(), max_lines=100, max_bytes=1 << 20)
    reader.close()
    journal.close()
    exporter = JsonlExporter(tmp_path / "out.jsonl")

    assert exporter.export(Batch(chunk.header, chunk.lines)) == Accepted()
    exporter.close()

    assert (tmp_path / "out.jsonl").read_text().splitlines() == [event.to_jsonl() for event in given_events]


def test_the_file_is_utf_8_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "made" / "out.jsonl"
    JsonlExporter(path).export(a_batch([line_of(AuditEvent(event_type="x", detail="駅"))]))

    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text(encoding="utf-8"))["detail"] == "駅"


def test_after_a_rename_or_removal_the_next_batch_is_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    exporter = JsonlExporter(path)
    exporter.export(a_batch([line_of(AuditEvent(event_type="first"))]))
    path.rename(tmp_path / "out.jsonl.1")
    exporter.export(a_batch([line_of(AuditEvent(event_type="second"))]))
    first, second = (tmp_path / "out.jsonl.1").read_text(), path.read_text()
    path.unlink()
    exporter.export(a_batch([line_of(AuditEvent(event_type="third"))]))

    assert [json.loads(text)["event_type"] for text in (first, second, path.read_text())] == [
        "first",
        "second",
        "third",
    ]


def test_a_line_torn_by_a_crash_does_not_swallow_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"event_type":"whole"}\n{"event_ty')

    JsonlExporter(path).export(a_batch([line_of(AN_EVENT)]))

    whole, torn, ours = path.read_bytes().splitlines()
    assert (whole, torn) == (b'{"event_type":"whole"}', b'{"event_ty')
    assert json.loads(ours)["event_type"] == "http.request"


@pytest.mark.processes
def test_what_a_full_disk_took_of_a_batch_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"event_type":"before"}\n')
    script = (
        "import resource, signal, sys\n"
        "from otel_audit.delivery.jsonl import JsonlFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = JsonlFile(sys.argv[1])\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))\n"
        "try:\n"
        "    file.append([b'x' * 700, b'y' * 700])\n"
        "except OSError as error:\n"
        "    print('refused', error.errno)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "file.append([b'again'])\n"
    )

    ran = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60, check=True
    )

    assert ran.stdout.startswith("refused")
    assert path.read_bytes() == b'{"event_type":"before"}\nagain\n'


def test_a_file_that_cannot_be_opened_is_unavailable_and_says_where(tmp_path: Path) -> None:
    directory = tmp_path / "out.jsonl"
    directory.mkdir()

    outcome = JsonlExporter(directory).export(a_batch([line_of(AN_EVENT)]))

    assert outcome == Unavailable(f"{directory}: expected to append 1 lines, got Is a directory")


def test_a_pipe_is_not_written_since_nothing_can_be_taken_back_from_it(tmp_path: Path) -> None:
    pipe = tmp_path / "out.jsonl"
    os.mkfifo(pipe)

    outcome = JsonlExporter(pipe).export(a_batch([line_of(AN_EVENT)]))

    assert isinstance(outcome, Unavailable)
    assert "not a regular file" in outcome.reason


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    link = tmp_path / "out.jsonl"
    link.symlink_to(tmp_path / "secret")

    assert isinstance(JsonlExporter(link).export(a_batch([line_of(AN_EVENT)])), Unavailable)
    assert (tmp_path / "secret").read_text() == ""


def test_a_file_that_another_process_keeps_locked_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        outcome = JsonlExporter(path).export(a_batch([line_of(AN_EVENT)]))

    assert isinstance(outcome, Unavailable)
    assert "another process" in outcome.reason
    assert path.read_text() == ""


def test_a_line_that_is_no_json_is_refused_alone_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    assert isinstance(JsonlExporter(path).export(a_batch([b"{nonsense", line_of(AN_EVENT)])), Refused)
    assert not path.exists()


def test_a_batch_of_the_journals_own_lines_makes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    assert JsonlExporter(path).export(a_batch([b'{"system":"segment","seq":1}'])) == Accepted()
    assert not path.exists()


@pytest.mark.processes
def test_processes_that_share_the_file_never_mix_or_lose_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    script = (
        "import sys\n"
        "from otel_audit.delivery.jsonl import JsonlFile\n"
        "file = JsonlFile(sys.argv[1])\n"
        "for number in range(30):\n"
        "    file.append([b'%b-%d ' % (sys.argv[2].encode(), number) + b'.' * 5000] * 3)\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "ab"]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]

    lines = path.read_text().splitlines()

    assert sorted(lines) == sorted(
        f"{name}-{number} {'.' * 5000}" for name in "ab" for number in range(30) for _ in "123"
    )


@pytest.mark.processes
def test_a_forked_child_appends_through_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = JsonlFile(path)
    file.append([b"parent"])
    child = os.fork()
    if child == 0:
        try:
            file.append([b"child"])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    file.append([b"parent again"])
    file.close()

    assert path.read_bytes() == b"parent\nchild\nparent again\n"


@pytest.mark.parametrize("delay_s", [0.5, 1.0])
def test_its_delay_is_that_of_the_batch(tmp_path: Path, delay_s: float) -> None:
    exporter = JsonlExporter(tmp_path / "out.jsonl", delay_s=delay_s)

    assert (exporter.name, exporter.delay_s) == ("jsonl", delay_s)


def test_descriptors_do_not_leak_over_many_renames(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    file = JsonlFile(path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        file.append([b"line"])
        path.rename(tmp_path / f"out.jsonl.{number}")
    file.close()

    assert len(os.listdir("/proc/self/fd")) <= before
