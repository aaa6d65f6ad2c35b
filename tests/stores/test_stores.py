"""One trail, wherever it lies: the same lines from a journal, an archive and a log, and whatever is none is said."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import sys
import tracemalloc
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner

from otel_audit.cli import main
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.line import Line
from otel_audit.stores import sorting
from otel_audit.stores.location import NothingStored, open_store
from otel_audit.stores.store import DamagedBytes, ForeignRecord, Kind, Remains, Store
from tests.journal_lines import HEADER, STREAM_ID, raw_line
from tests.servers import Collector
from tests.servers.collector import StartCollector
from tests.servers.polling import poll
from tests.stores.archives import archived, contents, headers_of, some_streams

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def read(path: Path) -> dict[str, list[bytes]]:
    with open_store(path) as store:
        return {stream_id: contents(list(store.lines_of(stream_id))) for stream_id in store.streams()}


def framed(content: bytes) -> bytes:
    packed = zstd.compress(content)
    return len(packed).to_bytes(4, "big") + packed


def a_line(seq: int, **event: object) -> bytes:
    return raw_line({"event_type": "a", **event}, seq=seq)


def an_archive(path: Path, *requests: bytes) -> Store:
    path.write_bytes(b"".join(request + b"\n" for request in requests))
    return open_store(path)


def test_a_journal_gives_the_lines_of_its_streams(tmp_path: Path) -> None:
    streams = some_streams(tmp_path)

    assert read(tmp_path) == streams
    with open_store(tmp_path) as store:
        assert store.kind is Kind.JOURNAL
        stream_id = store.streams()[0]
        assert contents(list(store.lines_of(stream_id, after=9))) == streams[stream_id][9:]
        assert list(store.others()) == []


def test_damage_in_a_journal_is_said_with_its_place_and_hash_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = some_streams(tmp_path, streams=1)
    [stream_id] = lines
    path = StreamFiles(tmp_path, stream_id).segment(2)
    first, second, rest = path.read_bytes().split(b"\n", 2)
    path.write_bytes(first + b"\njunk\n" + second + b"\n" + rest + b'{"torn')

    with open_store(tmp_path) as store:
        found = [each for each in store.lines_of(stream_id) if not isinstance(each, Line)]

    size = path.stat().st_size
    assert [each[:4] for each in found if isinstance(each, DamagedBytes)] == [
        (path.name, len(first) + 1, 4, sha256(b"junk").hexdigest()),
        (path.name, size - 6, 6, sha256(b'{"torn').hexdigest()),
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("portion_bytes", [1, 2000, 32 << 20])
def test_an_archive_gives_each_stream_by_number_whatever_came_late_or_twice(
    tmp_path: Path, seed: int, portion_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorting, "_PORTION_BYTES", portion_bytes)
    journal, archive = tmp_path / "journal", tmp_path / "archive"
    journal.mkdir()
    archive.mkdir()
    streams, headers, chance = some_streams(journal), headers_of(journal), random.Random(seed)
    batches = [
        (stream_id, lines[start : start + 5])
        for stream_id, lines in streams.items()
        for start in range(0, len(lines), 5)
    ]
    batches += chance.sample(batches, 3)
    chance.shuffle(batches)
    requests = [archived(headers[stream_id], lines) + b"\n" for stream_id, lines in batches]
    third = len(requests) // 3
    (archive / "audit-1.jsonl.gz").write_bytes(gzip.compress(b"".join(requests[:third])))
    (archive / "audit-2.jsonl.zst").write_bytes(zstd.compress(b"".join(requests[third : 2 * third])))
    (archive / "audit-3.jsonl").write_bytes(b"".join(framed(request[:-1]) for request in requests[2 * third :]))

    assert read(archive) == streams


def test_copies_that_differ_are_all_given_and_equal_ones_once(tmp_path: Path) -> None:
    one, other = a_line(3, detail="one"), a_line(3, detail="other")
    requests = [archived(HEADER, [a_line(2), line]) for line in (one, other, one, other)]

    with an_archive(tmp_path / "archive", *requests) as store:
        assert contents(list(store.lines_of(STREAM_ID))) == [a_line(2), one, other]
        assert contents(list(store.lines_of(STREAM_ID, after=2))) == [one, other]


def test_a_body_that_was_cut_is_the_remains_of_the_line_that_its_attributes_name(tmp_path: Path) -> None:
    line = a_line(7, detail="x" * 100)
    request = json.loads(archived(HEADER, [a_line(6), line]))
    request["resourceLogs"][0]["scopeLogs"][0]["logRecords"][1]["body"]["stringValue"] = line[:50].decode()

    with an_archive(tmp_path / "archive", json.dumps(request, separators=(",", ":")).encode()) as store:
        found = list(store.lines_of(STREAM_ID))

    assert found[1:] == [Remains(STREAM_ID, 7, line[:50], "archive, byte 0")]


def test_a_line_is_what_its_body_says_and_not_what_its_attributes_say(tmp_path: Path) -> None:
    line = a_line(7)
    request = archived(HEADER, [line]).replace(b'"intValue":"7"', b'"intValue":"9"')
    assert b'"9"' in request

    with an_archive(tmp_path / "archive", request) as store:
        assert [each.seq for each in store.lines_of(STREAM_ID) if isinstance(each, Line)] == [7]


@pytest.mark.parametrize("body", [b"hello", b'{"event_type":"a"}', None, a_line(0), a_line(2**63)])
def test_a_record_that_is_no_line_and_names_none_is_of_somebody_else(tmp_path: Path, body: bytes | None) -> None:
    record = {"eventName": "e", "timeUnixNano": "17", **({"body": {"stringValue": body.decode()}} if body else {})}
    request = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}

    with an_archive(tmp_path / "archive", json.dumps(request, separators=(",", ":")).encode()) as store:
        assert list(store.streams()) == []
        assert list(store.others()) == [ForeignRecord("e", 17, "archive, byte 0")]


def test_what_is_torn_in_an_archive_is_said_with_place_length_and_hash(tmp_path: Path) -> None:
    first, torn, last = (archived(HEADER, [a_line(seq)]) for seq in (1, 2, 3))
    content = first + b"\n" + torn[:90] + last + b"\nand junk"
    (tmp_path / "archive").write_bytes(content)

    with open_store(tmp_path / "archive") as store:
        assert contents(list(store.lines_of(STREAM_ID))) == [a_line(1), a_line(3)]
        damage = [each for each in store.others() if isinstance(each, DamagedBytes)]

    assert [content[each.offset : each.offset + each.length] for each in damage] == [torn[:90], b"and junk"]
    assert [each.hash for each in damage] == [sha256(torn[:90]).hexdigest(), sha256(b"and junk").hexdigest()]


def test_a_compressed_archive_that_is_cut_off_says_so(tmp_path: Path) -> None:
    lines = [a_line(seq, detail=os.urandom(100).hex()) for seq in range(1, 400)]
    packed = gzip.compress(b"".join(archived(HEADER, [line]) + b"\n" for line in lines))
    (tmp_path / "archive").write_bytes(packed[: len(packed) // 2])

    with open_store(tmp_path / "archive") as store:
        read_lines = contents(list(store.lines_of(STREAM_ID)))
        [damage] = store.others()

    assert read_lines == lines[: len(read_lines)]
    assert len(read_lines) > 50

    assert isinstance(damage, DamagedBytes)
    assert damage.reason.endswith("cut off, or not yet whole")


@pytest.mark.slow
def test_memory_stays_flat_however_large_the_archive_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorting, "_PORTION_BYTES", 1 << 20)
    with (tmp_path / "archive").open("wb") as file:
        for start in range(20_001, 1, -100):
            lines = [a_line(seq, detail="x" * 1000) for seq in range(start, start + 100)]
            file.write(archived(HEADER, lines) + b"\n")
    assert (tmp_path / "archive").stat().st_size > 20 << 20

    tracemalloc.start()
    try:
        with open_store(tmp_path / "archive") as store:
            numbers = [each.seq for each in store.lines_of(STREAM_ID) if isinstance(each, Line)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert numbers == list(range(101, 20_101))
    assert peak < 16 << 20


def test_an_event_log_gives_lines_without_a_chain_and_one_segment_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b'{"event_type":"a"}\nnone\n\n{"event_type":"b"}')
    with open_store(log) as store:
        assert store.kind is Kind.EVENT_LOG
        [stream_id] = store.streams()
        lines = [each for each in store.lines_of(stream_id) if isinstance(each, Line)]
        assert [(line.seq, line.tail.prev_hash) for line in lines] == [(1, None), (4, None)]
        [damage] = store.others()
    assert damage[:4] == ("log", 19, 4, sha256(b"none").hexdigest())

    [(stream_id, written)] = some_streams(tmp_path / "journal", streams=1, events=2).items()
    segment = StreamFiles(tmp_path / "journal", stream_id).segment(1)
    copy = shutil.copy(segment, tmp_path / "copy")
    assert read(Path(copy)) == {stream_id: written}


def test_where_no_trail_lies_is_said_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")

    for path in (tmp_path, tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(NothingStored, match="expected a"):
            open_store(path)


@pytest.mark.processes
@pytest.mark.collector
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_archive_of_a_real_collector_gives_back_every_line_of_the_journal(
    tmp_path: Path, start_collector: StartCollector, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["exporters::file/archive::compression: zstd"] if compression == "zstd" else []
    collector = start_collector(overrides=overrides)
    streams = delivered(tmp_path / "journal", collector, monkeypatch)

    def found() -> dict[str, list[bytes]]:
        try:
            return read(collector.archive_path.parent)
        except NothingStored:
            return {}

    poll(found, until=lambda read_now: read_now == streams, what="every line of the journal")


def delivered(directory: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bytes]]:
    """Ship a journal to a collector by the real command; its lines."""
    directory.mkdir()
    streams = some_streams(directory)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.http_endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    done = CliRunner().invoke(main, ["ship", "--once", str(directory)])
    assert done.exit_code == 0, done.output
    return streams


def test_a_stream_in_many_portions_is_read_in_the_memory_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    portion_bytes, count, content = 1 << 20, 200, b"x" * 8000
    monkeypatch.setattr(sorting, "_PORTION_BYTES", portion_bytes)
    with closing(sorting.SortedLines()) as lines:
        for seq in range(1, count * portion_bytes // len(content)):
            lines.add((STREAM_ID, Line(content, seq * 7919 % 1_000_003)))
        tracemalloc.start()
        try:
            read = sum(1 for _ in lines.lines_of(STREAM_ID))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert read == count * portion_bytes // len(content) - 1
    assert peak_bytes < 8 * portion_bytes
