"""SQL reads the trail and nothing else, and writes nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_audit import AuditPrincipal
from otel_audit.query.columns import COLUMNS
from otel_audit.query.database import TrailDatabase
from otel_audit.query.unanswered import QueryUnanswered
from otel_audit.stores.location import open_store
from tests.recording import recorder
from tests.walkthrough import ROOT


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    with recorder(tmp_path / "journal") as audit:
        audit.log_http_request(
            method="PUT", path="/orders/7", status_code=403, principal=AuditPrincipal(username="alice"), outcome="deny"
        )
    return tmp_path / "journal"


@pytest.fixture
def trail(journal: Path) -> Iterator[TrailDatabase]:
    with open_store(journal) as store, TrailDatabase([store]) as trail:
        yield trail


def test_each_column_holds_what_was_logged(trail: TrailDatabase) -> None:
    [row] = map(json.loads, trail.objects("SELECT * FROM events WHERE system IS NULL"))

    line = json.loads(row["line"])
    assert list(row) == [column.name for column in COLUMNS]
    assert (row["method"], row["path"], row["status_code"]) == ("PUT", "/orders/7", 403)
    assert (row["outcome"], row["result"], row["actor_name"]) == ("deny", "denied", "alice")
    assert row["service"].startswith("unknown_service")
    assert row["time"][:19] == line["timestamp"].replace("T", " ")[:19]
    assert [row[key] for key in ("time_ns", "seq", "stream_id")] == [line[k] for k in ("time_ns", "seq", "stream_id")]


def test_the_page_lists_the_columns_as_they_are() -> None:
    page = (ROOT / "docs" / "query.md").read_text()

    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(column.name, column.kind, column.says) for column in COLUMNS]


def test_the_columns_have_the_types_that_the_page_says(trail: TrailDatabase) -> None:
    _, rows = trail.rows("DESCRIBE events")

    assert [tuple(row[:2]) for row in rows] == [(column.name, column.kind) for column in COLUMNS]


@pytest.mark.parametrize(
    "question",
    [
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{secret}')",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_json_auto('{secret}')",
        "SELECT * FROM '{secret}'",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM sniff_csv('{secret}')",
        "SELECT * FROM read_csv('http://127.0.0.1:9/x')",
        "SELECT * FROM parquet_scan('{secret}')",
        "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
        "SELECT * FROM query_table('{secret}')",
        "SELECT getenv('HOME')",
        "SELECT * FROM question",
        "SELECT * FROM duckdb_extensions()",
        "COPY events TO '{folder}/out.csv'",
        "COPY (SELECT 1) TO '{segment}' (FORMAT csv, USE_TMP_FILE false)",
        "ATTACH '{folder}/other.db'",
        "EXPORT DATABASE '{folder}/exported'",
        "IMPORT DATABASE '{folder}'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "SET allowed_directories = ['/']",
        "PRAGMA enable_profiling",
        "CREATE TABLE mine AS SELECT 1",
        "CREATE SECRET mine (TYPE s3)",
        "DROP VIEW events",
        "CALL enable_logging(storage = 'file', storage_path = '{folder}/log')",
        "SELECT 1; SELECT 2",
        "SELECT 1) TO '{segment}' (FORMAT csv, USE_TMP_FILE false) --",
        "SELECT 1 /*",
        "EXPLAIN SELECT 1",
        "SELECT '\udcff'",
        "",
        "SELEC",
        "SELECT nothing FROM events",
    ],
)
def test_what_reads_or_writes_anything_else_is_refused(trail: TrailDatabase, journal: Path, question: str) -> None:
    folder = journal.parent
    secret = folder / "secret.csv"
    secret.write_text("word\nhunter2\n")
    segment = next(journal.glob("*-*.jsonl"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    asked = question.format(secret=secret, folder=folder, segment=segment)

    for ask in (lambda: list(trail.objects(asked)), lambda: list(trail.rows(asked)[1])):
        with pytest.raises(QueryUnanswered):
            ask()

    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_comment_at_the_end_of_a_question_hides_nothing(trail: TrailDatabase) -> None:
    assert list(trail.rows("SELECT count(*) FROM events WHERE system IS NULL -- all")[1]) == [("1",)]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-inf"])
def test_a_number_that_json_does_not_have_is_none(journal: Path, word: str) -> None:
    segment = next(journal.glob("*-*.jsonl"))
    segment.write_bytes(
        segment.read_bytes().replace(b'"outcome":"deny"', f'"outcome":"deny","duration_ms":"{word}"'.encode())
    )

    with open_store(journal) as store, TrailDatabase([store]) as trail:
        for view in ("events", "sought"):
            rows = list(trail.objects(f"SELECT duration_ms FROM {view} WHERE outcome = 'deny'"))
            assert rows == ['{"duration_ms":null}']


def test_a_pipe_in_the_place_of_a_segment_is_not_waited_for(journal: Path) -> None:
    name = next(journal.glob("*-*.jsonl")).name
    os.mkfifo(journal / name.replace(".00000001.", ".00000009."))
    os.mkfifo(journal / "00000000-0000-7000-8000-000000000001.00000001.jsonl")

    with open_store(journal) as store, TrailDatabase([store]) as trail:
        assert list(trail.rows("SELECT path FROM events WHERE system IS NULL")[1]) == [("/orders/7",)]
