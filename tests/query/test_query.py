"""What is found in a trail: the same as by a plain loop over its lines, whatever the files look like."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit import AuditEvent, AuditPrincipal, AuditResource
from otel_audit.event import AuditAction, Outcome
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import WORDS, Filters, Place
from otel_audit.settings.service import UNKNOWN_SERVICE
from otel_audit.stores.location import open_store
from tests.recording import recorder
from tests.stores.archives import archive_of, journal_lines
from tests.verification.forge import Forge

SERVICE = UNKNOWN_SERVICE  # where no setting names it
NAMES = ["alice", "bob", "CORP\\dave", 'a"b', "x+y@z", "50%", "a_b", "aXb", "Ünï\u2028", "*"]
texts = st.sampled_from(["", *NAMES])
events = st.builds(
    AuditEvent,
    event_type=st.sampled_from(["http.request", "mcp.tools.call", "order.paid"]),
    outcome=st.sampled_from(["success", "deny", "mcp_error", "odd", ""]),
    principal=st.builds(AuditPrincipal, username=texts, id=st.none() | texts, on_behalf_of=st.none() | texts),
    action=st.builds(AuditAction, mcp_tool=texts, path=st.sampled_from(["", "/orders/7", "/orders/8", "/a_b"])),
    resource=st.builds(AuditResource, type=st.sampled_from(["", "table"]), name=texts),
    detail=texts,
    tags=st.none() | st.lists(texts, max_size=2),
)
words = st.sampled_from(
    [*NAMES, SERVICE, "*", "a*", "*b", "/orders/*", "table/*", "denied", "error", "success", "http.*", "A*"]
)
filters = st.builds(
    Filters,
    words=st.dictionaries(st.sampled_from(sorted(WORDS)), st.lists(words, min_size=1, max_size=2), max_size=2),
    text=st.sampled_from(["", "ALICE", 'a"b', "\\", "ünï", "%", "\u2028"]),
)


@contextmanager
def database(*paths: Path) -> Iterator[TrailDatabase]:
    with ExitStack() as stack:
        stores = [stack.enter_context(open_store(path)) for path in paths]
        yield stack.enter_context(TrailDatabase(stores))


def found(asked: Filters, *paths: Path, limit: int | None = None) -> list[bytes]:
    with database(*paths) as trail:
        return [each.line for each in trail.find(asked, limit)]


def matches(word: str, text: str | None) -> bool:
    pattern = ".*".join(map(re.escape, word.split("*")))
    return text is not None and re.fullmatch(pattern, text, re.DOTALL) is not None


def values_of(event: Mapping[str, Any], name: str) -> Sequence[str | None]:
    """What a filter looks at, as the documents say it."""
    principal, action, resource = event["principal"], event["action"], event["resource"]
    match name:
        case "actor":
            return principal.get("id"), principal["username"]
        case "on_behalf_of":
            return (principal.get("on_behalf_of"),)
        case "tool":
            return (action["mcp_tool"],)
        case "path":
            return (action["path"],)
        case "target":
            return resource["name"], f"{resource['type']}/{resource['name']}"
        case "outcome":
            return event["outcome"], Outcome.of(event["outcome"]).value
        case "type":
            return (event["event_type"],)
        case "service":
            return (SERVICE,)
        case "tag":
            return tuple(event.get("tags", ()))
        case _:
            return (event.get({"trace": "trace_id", "request": "request_id"}[name]),)


def is_found(line: bytes, asked: Filters) -> bool:
    event = json.loads(line)
    written = json.dumps(asked.text, ensure_ascii=False)[1:-1].lower()
    return (
        (bool(asked.words.get("type")) or event.get("system") != "segment")
        and all(
            any(matches(word, value) for word in given for value in values_of(event, name))
            for name, given in asked.words.items()
        )
        and written in line.decode().lower()
    )


def naive(lines: Sequence[bytes], asked: Filters) -> list[bytes]:
    """Return what a loop over the lines finds, the newest first."""

    def place(line: bytes) -> tuple[int, str, int]:
        event = json.loads(line)
        return event["time_ns"], event["stream_id"], event["seq"]

    return sorted((line for line in lines if is_found(line, asked)), key=place, reverse=True)


def all_lines(directory: Path) -> list[bytes]:
    return [line for lines in journal_lines(directory).values() for line in lines]


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logged=st.lists(events, min_size=1, max_size=12), asked=st.lists(filters, min_size=1, max_size=6))
def test_filters_find_what_a_loop_over_the_lines_finds(
    tmp_path_factory: pytest.TempPathFactory, logged: Sequence[AuditEvent], asked: Sequence[Filters]
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    with recorder(directory) as audit:
        for event in logged:
            audit.log(event)
        with database(directory) as trail:  # while its writer lives
            lines = all_lines(directory)
            for each in asked:
                assert [one.line for one in trail.find(each)] == naive(lines, each)
    lines = all_lines(directory)
    with database(directory) as trail:
        for each in asked:
            assert [one.line for one in trail.find(each)] == naive(lines, each)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    for _ in range(2):
        with recorder(directory) as audit:
            for number in range(20):
                audit.log_mcp_call(tool_name=f"tool-{number}", principal=AuditPrincipal(username="alice"))
    return directory


def test_an_archive_gives_the_answer_of_its_journal(journal: Path, tmp_path: Path) -> None:
    archive = archive_of(journal, tmp_path / "archive.jsonl")
    asked = Filters({"tool": ["tool-1*"]})

    assert found(asked, archive) == found(asked, journal) == naive(all_lines(journal), asked)
    assert len(found(asked, archive)) == 2 * 11


def test_an_event_that_is_in_several_sources_is_found_once(journal: Path, tmp_path: Path) -> None:
    archive = archive_of(journal, tmp_path / "archive.jsonl")
    archive.write_bytes(archive.read_bytes() * 2)  # sent again after an outage

    assert found(Filters(), archive, journal) == found(Filters(), journal)
    assert len(found(Filters(), archive)) == 40


def test_pages_are_one_after_the_other_though_events_arrive_meanwhile(journal: Path) -> None:
    whole = found(Filters(), journal)
    pages: list[bytes] = []
    before: Place | None = None
    while True:
        with database(journal) as trail:
            page = list(trail.find(Filters(before=before), 7))
        if not page:
            break
        pages += [each.line for each in page]
        before = Place.parse(str(page[-1].place))
        with recorder(journal) as audit:
            audit.log_mcp_call(tool_name="later")

    assert pages == whole


def test_damaged_lines_are_counted_and_the_others_found(journal: Path) -> None:
    path = min(journal.glob("*-*.jsonl"))
    whole = path.read_bytes().split(b"\n")[:-1]
    lines = list(whole)
    lines[3] = b"\0" * 64  # a block that was lost
    lines[5] = lines[5][:40] + b"\xff" + lines[5][41:]
    lines[7] = lines[7].replace(b'"principal"', b'"principal', 1)
    lines[9] = lines[9][:100] + lines[9]  # its writer went on behind the remains of a line
    path.write_bytes(b"\n".join(lines) + b"\n" + lines[10][:50])
    harmed = {*whole[3:8:2], *lines[3:10:2]}
    unharmed = {line for line in all_lines(journal) if line not in harmed} | {whole[9]}

    with database(journal) as trail:
        answer = [each.line for each in trail.find(Filters())]
        damaged = trail.gathered.damaged

    assert answer == naive(sorted(unharmed), Filters())
    assert damaged == 5


def test_a_segment_that_retention_removes_is_read_to_its_end(journal: Path) -> None:
    with database(journal) as trail:
        before = list(trail.find(Filters()))
        for path in journal.glob("*-*.jsonl"):
            path.unlink()

        assert list(trail.find(Filters())) == before
        assert list(trail.rows("SELECT count(*) FROM events WHERE system IS NULL")[1]) == [("40",)]


def test_a_segment_that_is_gone_when_it_is_opened_is_counted(journal: Path) -> None:
    oldest = min(journal.glob("*-*.jsonl"))
    oldest.unlink()
    oldest.symlink_to("removed")  # listed, and not there

    with database(journal) as trail:
        assert len(list(trail.find(Filters()))) == 20
        assert trail.gathered.removed == 1


def test_more_segments_than_descriptors_are_read(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(Filters(), journal)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2, 2))

    assert found(Filters(), journal) == whole


def test_a_line_that_is_being_written_is_no_damage(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        audit.log_mcp_call(tool_name="first")
        segment = next(tmp_path.glob("*-*.jsonl"))
        with segment.open("ab") as file:
            file.write(b'{"event_type":"mcp.tools')
        with database(tmp_path) as trail:
            assert len(list(trail.find(Filters()))) == 1
            assert (trail.gathered.unfinished, trail.gathered.damaged) == (1, 0)


def test_a_span_of_time_has_its_first_moment_and_not_its_last(journal: Path) -> None:
    times = sorted(json.loads(line)["time_ns"] for line in found(Filters(), journal))
    asked = Filters(since_ns=times[10], until_ns=times[20])

    assert sorted(json.loads(line)["time_ns"] for line in found(asked, journal)) == [
        each for each in times if times[10] <= each < times[20]
    ]


def test_records_of_other_programs_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "archive.jsonl"
    path.write_text(
        '{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"hello"},"eventName":"greeting"}]}]}]}\n'
    )

    with database(path) as trail:
        assert list(trail.find(Filters())) == []
        assert (trail.gathered.others, trail.gathered.damaged) == (1, 0)


def test_the_lines_of_the_ledger_are_no_events(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    forge.honest_stream()
    forge.write()
    journal = forge.directory

    with database(journal) as trail:
        _, rows = trail.rows("SELECT DISTINCT system FROM events WHERE system IS NOT NULL ORDER BY system")
        assert list(rows) == [("ledger",), ("note",), ("segment",)]

    assert not [line for line in found(Filters(), journal) if b'"system":' in line]
    assert found(Filters({"type": ["audit.note"]}), journal)


@pytest.mark.parametrize("of", ["journal", "archive", "both"])
def test_an_answer_that_is_sorted_in_parts_is_that_of_one_sort(
    journal: Path, tmp_path: Path, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [-(2**63), 0, *range(10**18, 10**18 + 10), *[2 * 10**18] * 5, 2**63 - 1]
    for path in journal.glob("*-*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines[:-1]):
            lines[number] = re.sub(rb'"time_ns":\d+', b'"time_ns":%d' % times[number % len(times)], line)
        lines[-1] = lines[-1].replace(b'{"event_type"', b'{"time_ns":"none","event_type"')
        path.write_bytes(b"".join(lines))
    archive = archive_of(journal, tmp_path / "archive.jsonl")
    paths = {"journal": [journal], "archive": [archive], "both": [journal, archive]}[of]
    for asked in (Filters(), Filters({"tool": ["tool-1*"]}), Filters(since_ns=5, until_ns=10**18 + 4)):
        for limit in (None, 7):
            with monkeypatch.context() as patched:
                whole = found(asked, *paths, limit=limit)
                for name, value in (("_PAGE_MAX", 1), ("_SORTED_MAX_BYTES", 1), ("_SLICE_BYTES", 1500)):
                    patched.setattr(f"otel_audit.query.database.{name}", value)
                with database(*paths) as trail:
                    assert [each.line for each in trail.find(asked, limit)] == whole
                    names, rows = trail.rows(*trail.select(asked, limit))
                    assert [str(row[names.index("line")]).encode() for row in rows] == whole
            assert whole
