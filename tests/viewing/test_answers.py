"""What the page is told: the same events as `query` finds, and the same verdicts as `verify`."""

from __future__ import annotations

import json
import os
import shlex
import threading
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_audit import AuditEvent
from otel_audit.cli import main
from otel_audit.errors import ProofUnavailable
from otel_audit.query.database import TrailDatabase
from otel_audit.query.filters import Filters
from otel_audit.signing.keys import SigningKey
from otel_audit.stores.directory import DirectoryStore
from otel_audit.stores.location import open_store
from otel_audit.stores.store import Store
from otel_audit.verification.pins import Pins
from otel_audit.viewing import answers
from otel_audit.viewing.answers import Unanswerable
from otel_audit.viewing.trail import ViewedTrail
from tests.journal.writing import a_journal, append
from tests.query.test_query import events, filters
from tests.recording import recorder
from tests.stores.archives import archive_of
from tests.verification.forge import Forge
from tests.verification.kept import Kept, all_lines
from tests.verification.verifiers import of_python
from tests.viewing.trails import ALICE, all_events, asking, logging, some_events, tampered, until, viewed


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    with logging(tmp_path / "journal") as audit:
        some_events(audit, rounds=3)
    return tmp_path / "journal"


def places(found: Sequence[dict[str, object]]) -> list[tuple[object, object]]:
    return [(each["stream_id"], each["seq"]) for each in found]


def place_in(line: bytes) -> tuple[object, object]:
    event = json.loads(line)
    return event["stream_id"], event["seq"]


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logged=st.lists(events, min_size=1, max_size=12), asked=st.lists(filters, min_size=1, max_size=6))
def test_filters_find_what_query_finds_on_all_pages_together(
    tmp_path_factory: pytest.TempPathFactory, logged: Sequence[AuditEvent], asked: Sequence[Filters]
) -> None:
    directory = tmp_path_factory.mktemp("trail") / "journal"
    with recorder(directory) as audit:
        for each in logged:
            audit.log(each)
    with viewed(directory) as trail, TrailDatabase([DirectoryStore(directory)]) as database:
        for wanted in asked:
            given = {name: list(words) for name, words in wanted.words.items()} | {"text": [wanted.text]}

            found = all_events(trail, **given)
            timeline = answers.timeline(trail, given)

            assert places(found) == [place_in(line) for _, line in database.find(wanted)]
            assert timeline["count"] == len(found)
            assert sum(sum(counts.values()) for _, counts in timeline["bars"]) == len(found)


@pytest.mark.parametrize("kind", ["archive", "packed"])
def test_other_stores_show_the_same_events_as_their_journal(journal: Path, tmp_path: Path, kind: str) -> None:
    other = tmp_path / kind
    if kind == "archive":
        other = archive_of(journal, tmp_path / "archive.jsonl")
    else:
        packed = CliRunner().invoke(main, ["pack", str(journal), str(other)])
        assert packed.exit_code == 0, packed.output

    with viewed(journal) as trail:
        expected = all_events(trail, actor="agent-7")
    with viewed(other) as trail:
        assert places(all_events(trail, actor="agent-7")) == places(expected) != []


def test_a_log_of_events_is_shown_without_a_claim_about_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    event = AuditEvent(event_type="order.paid", outcome="success", timestamp="2026-11-29T08:00:00Z")
    path.write_text(event.to_jsonl() + "\n")

    with viewed(path) as trail:
        assert answers.state(trail)["verifying"] is None
        assert [each["standing"] for each in all_events(trail)] == ["unchained"]


def test_the_timeline_counts_by_outcome_and_keeps_what_other_outcomes_have(journal: Path) -> None:
    with viewed(journal) as trail:
        all_of_them = answers.timeline(trail, asking())
        denied = answers.timeline(trail, asking(outcome="denied"))

    assert all_of_them["count"] == 12
    assert all_of_them["totals"] == {"success": 6, "denied": 3, "error": 3} == denied["totals"]
    assert denied["count"] == 3
    assert {outcome for _, counts in denied["bars"] for outcome in counts} == {"denied"}


@pytest.mark.parametrize(
    ("first_ns", "last_ns"), [(0, 0), (1_795_962_969_413_130_473,) * 2, (0, 2**62), (5 * 10**9, 65 * 10**9)]
)
def test_every_span_of_time_has_bars_that_cover_it(first_ns: int, last_ns: int) -> None:
    begin_ns, step_ns = answers._steps(first_ns, last_ns)

    assert begin_ns <= first_ns
    assert (last_ns - begin_ns) // step_ns < 2 * 96
    assert begin_ns % step_ns == 0


def test_suggestions_are_the_words_that_a_filter_would_find(journal: Path) -> None:
    with viewed(journal) as trail:
        assert answers.values(trail, asking(name="actor", text="A"))["values"] == ["agent-7", "alice"]
        assert answers.values(trail, asking(name="target", text="sal"))["values"] == ["salaries", "table/salaries"]
        with pytest.raises(Unanswerable, match="expected one of actor, "):
            answers.values(trail, asking(name="line", text=""))


# One event.


def test_an_event_has_its_line_and_the_hashes_that_bind_it_to_its_neighbours(journal: Path) -> None:
    with viewed(journal) as trail:
        row = all_events(trail, outcome="denied")[0]
        shown = answers.event(trail, asking(stream=row["stream_id"], seq=row["seq"]))
        line = answers.line(trail, asking(stream=row["stream_id"], seq=row["seq"]))
        before = answers.line(trail, asking(stream=row["stream_id"], seq=row["seq"] - 1))

    assert shown["line"].encode() == line
    assert shown["chain"]["hash"] == sha256(line).hexdigest() == shown["chain"]["after_names"]
    assert shown["chain"]["before"] == sha256(before).hexdigest() == shown["chain"]["names"]
    assert shown["fields"]["time_ns"] == str(json.loads(line)["time_ns"])
    assert shown["standing"] == "signed"


def test_a_key_that_was_brought_along_proves_the_lines_that_it_vouches_for(tmp_path: Path) -> None:
    identity = SigningKey.generate()
    forge = Forge(tmp_path / "journal", identity=identity)
    stream = forge.honest_stream(ended=False)
    stream.log(2)
    forge.write()

    with viewed(forge.directory, Pins(identity=identity.verifier(forge.ledger.origin))) as trail:
        found = [each["standing"] for each in all_events(trail)]

    assert found == ["chained"] * 12 + ["proven"] * 12  # ten lines behind the last head, and two more


def test_a_changed_line_is_broken_and_its_neighbours_are_not(journal: Path) -> None:
    seq = tampered(journal, b"/orders/1", lambda line: line.replace(b"/orders/1", b"/orders/9"))

    with viewed(journal) as trail:
        standings = {each["seq"]: each["standing"] for each in all_events(trail)}
        row = all_events(trail, path="/orders/9")[0]
        shown = answers.event(trail, asking(stream=row["stream_id"], seq=seq))
        verification = answers.verification(trail)

    assert standings.pop(seq) == "broken"
    assert "broken" not in standings.values()
    assert shown["chain"]["hash"] != shown["chain"]["after_names"]
    assert [each["seq"] for each in shown["findings"]] == [seq]
    assert verification["verdict"] == "broken"
    assert verification["findings"][0]["message"] == shown["findings"][0]["message"]


def test_the_proof_of_an_event_is_the_one_that_prove_writes(journal: Path) -> None:
    with viewed(journal) as trail:
        row = all_events(trail, outcome="denied")[0]
        made = answers.proof(trail, asking(stream=row["stream_id"], seq=row["seq"]))
    printed = CliRunner().invoke(main, ["prove", row["event_id"], str(journal)])
    raw = b64decode(made["proof"])

    assert raw == printed.stdout_bytes
    *command, key = shlex.split(made["checks"][0])
    assert command == ["otel-audit", "verify", "--proof", made["name"], "--key"]
    assert json.loads(of_python(raw, key).event or b"null")["event_id"] == row["event_id"]


def test_the_command_that_checks_a_proof_is_one_whatever_the_log_is_called() -> None:
    key = "shop';reboot;'$(id)`id`/0199aabb-ccdd-7eef-8011-000000000000+1a2b3c4d+AbCd"

    command = answers.command_to_check("x.tlog-proof", key)

    assert shlex.split(command) == ["otel-audit", "verify", "--proof", "x.tlog-proof", "--key", key]


def test_what_is_not_there_is_said(journal: Path) -> None:
    with viewed(journal) as trail:
        (stream_id,) = {each["stream_id"] for each in all_events(trail)}
        for asked in (asking(stream=stream_id, seq=99), asking(stream="../x", seq=1)):
            for question in (answers.event, answers.line, answers.proof):
                with pytest.raises(Unanswerable, match="got none"):
                    question(trail, asked)
        for seq in ("", "-1", "x", "9" * 30):
            with pytest.raises(Unanswerable, match="expected a whole number"):
                answers.event(trail, asking(stream=stream_id, seq=seq or "none"))


@pytest.mark.parametrize("kind", ["archive", "loki"])
def test_a_store_gives_the_proofs_of_its_journal_also_when_it_has_gone(tmp_path: Path, kind: str) -> None:
    identity = SigningKey.generate()
    forge = Forge(tmp_path / "journal", identity=identity)
    stream = forge.honest_stream(segments=2)
    forge.honest_stream()
    forge.write()

    with Kept(kind, tmp_path).at(all_lines(forge)) as source, viewed(source) as trail:
        row = all_events(trail)[-1]
        of_store = answers.proof(trail, asking(stream=row["stream_id"], seq=row["seq"]))
        assert answers.event(trail, asking(stream=row["stream_id"], seq=row["seq"]))["can_prove"]
        (tmp_path / "archive.jsonl").unlink(missing_ok=True)
        for seq in range(1, len(stream.lines) + 1):
            made = answers.proof(trail, asking(stream=stream.stream_id, seq=seq))
            answer = of_python(b64decode(made["proof"]), identity.verifier(forge.ledger.origin))
            assert answer.event == stream.lines[seq - 1]
    with viewed(forge.directory) as trail:
        assert answers.proof(trail, asking(stream=row["stream_id"], seq=row["seq"])) == of_store


def test_what_a_store_cannot_prove_is_said(journal: Path, tmp_path: Path) -> None:
    with viewed(archive_of(journal, tmp_path / "archive.jsonl")) as trail:
        row = all_events(trail)[0]
        with pytest.raises(ProofUnavailable, match="has no signed ledger"):
            answers.proof(trail, asking(stream=row["stream_id"], seq=row["seq"]))
    events = tmp_path / "events.jsonl"
    events.write_text(AuditEvent(event_type="a", outcome="success").to_jsonl() + "\n")
    with viewed(events) as trail, pytest.raises(Unanswerable, match="got a log of events"):
        answers.proof(trail, asking(stream="x", seq=1))


def test_a_text_of_a_megabyte_is_cut_where_it_is_shown_and_whole_where_it_is_saved(tmp_path: Path) -> None:
    with closing(a_journal(tmp_path / "journal")) as journal:  # past the caps of a logger, which would cut it already
        append(journal, "a", principal={"username": "n" * 300_000}, detail="d" * 700_000)

    with viewed(tmp_path / "journal") as trail:
        (row,) = all_events(trail)
        asked = asking(stream=row["stream_id"], seq=row["seq"])
        shown = answers.event(trail, asked)
        line = answers.line(trail, asked)

    assert len(json.dumps(row)) < 5000
    assert len(json.dumps(shown)) < 300_000
    assert shown["is_cut"]
    assert shown["line_bytes"] == len(line) > 1_000_000
    assert line in b"".join(path.read_bytes() for path in (tmp_path / "journal").glob("0*.jsonl"))


def test_a_duration_that_is_no_number_spoils_no_page(journal: Path) -> None:
    tampered(journal, b'"duration_ms":1', lambda line: line.replace(b'"duration_ms":1', b'"duration_ms":"NaN","was":1'))

    with viewed(journal) as trail:
        page = answers.events(trail, asking())
        for row in page["events"]:
            json.dumps(answers.event(trail, asking(stream=row["stream_id"], seq=row["seq"])), allow_nan=False)

    assert len(json.loads(json.dumps(page, allow_nan=False))["events"]) == 12


# While it is read, and afterwards.


@pytest.mark.parametrize("kind", ["journal", "packed"])
def test_the_newest_events_are_there_while_the_rest_is_read(journal: Path, tmp_path: Path, kind: str) -> None:
    opened: list[None] = []
    may_read = threading.Event()
    if kind == "packed":
        packed = CliRunner().invoke(main, ["pack", str(journal), str(tmp_path / kind)])
        assert packed.exit_code == 0, packed.output

    def opened_slowly() -> Store:
        opened.append(None)
        if len(opened) > (1 if kind == "journal" else 2):  # the first only asks what it is, the second for the newest
            may_read.wait()
        return open_store(tmp_path / kind)

    with viewed(journal, opened=opened_slowly) as trail:
        until(lambda: answers.events(trail, asking())["events"], "the newest events")
        assert not trail.reading.is_done
        assert len(all_events(trail)) == 12
        assert {each["standing"] for each in all_events(trail)} == {"unchecked"}

        may_read.set()
        until(lambda: trail.verified, "the end of verifying")
        assert len(all_events(trail)) == 12
        assert {each["standing"] for each in all_events(trail)} == {"signed"}


def test_events_of_a_journal_appear_as_they_are_recorded_also_those_of_new_streams(journal: Path) -> None:
    with viewed(journal) as trail:
        grown = trail.grown
        with logging(journal) as audit:
            audit.log_http_request(method="GET", path="/late", status_code=200, principal=ALICE)
            until(lambda: all_events(trail, path="/late"), "the new event")

            assert trail.grown > grown
            assert answers.timeline(trail, asking())["count"] == 13
            audit.log_http_request(method="GET", path="/later", status_code=200, principal=ALICE)
            until(lambda: all_events(trail, path="/later"), "the next one")
    with viewed(journal) as trail:
        assert len(set(places(all_events(trail)))) == 14


def test_an_archive_is_read_again_when_it_grows_and_somebody_follows_it(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otel_audit.viewing.trail._AGAIN_S", 0.01)
    archive = archive_of(journal, tmp_path / "archive.jsonl")
    whole = archive.read_bytes()
    archive.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]))
    with viewed(archive) as trail:
        before = len(all_events(trail))
        archive.write_bytes(whole)
        trail.follow()
        until(lambda: len(all_events(trail)) == 12, f"12 events instead of {before}")


def test_a_trail_that_cannot_be_read_says_why(journal: Path) -> None:
    opened: list[None] = []

    def gone() -> Store:
        opened.append(None)
        if len(opened) > 1:
            raise OSError(5, "Input/output error")
        return DirectoryStore(journal)

    with viewed(journal, opened=gone) as trail:
        until(lambda: trail.reading.error, "the reason")
        assert "Input/output error" in answers.state(trail)["reading"]["error"]


@pytest.mark.parametrize("is_emptied", [False, True])
def test_a_journal_that_is_removed_meanwhile_is_not_consistent(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_emptied: bool
) -> None:
    for name in ("_AGAIN_S", "_RETRY_S"):
        monkeypatch.setattr(f"otel_audit.viewing.trail.{name}", 0.2)
    with viewed(journal) as trail:
        os.rename(journal, tmp_path / "moved")
        if is_emptied:
            journal.mkdir()
        until(lambda: trail.verifying.error and trail.outdated, "both reasons")
        assert "got no segment of it" in answers.state(trail)["verifying"]["error"]
        assert "got no segment of it" in answers.state(trail)["outdated"]
        assert len(all_events(trail)) == 12

        if is_emptied:
            journal.rmdir()
        os.rename(tmp_path / "moved", journal)
        until(lambda: trail.verifying.is_done and not trail.outdated, "the journal again")


@pytest.fixture
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    yield
    assert os.listdir(scratch) == []


def test_nothing_is_left_in_the_directory_for_temporary_files(journal: Path, no_leftovers: None) -> None:
    with viewed(journal) as trail:
        assert isinstance(trail, ViewedTrail)
        assert all_events(trail)
