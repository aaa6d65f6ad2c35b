"""A packed trail holds every line, once, and is read by `query` and `verify` as the journal is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otel_audit import AuditLogger, AuditPrincipal, AuditResource
from otel_audit.cli import main
from otel_audit.journal.locks import FileLock
from otel_audit.query.database import TrailDatabase
from otel_audit.stores.location import kind_of, open_store
from otel_audit.stores.store import Kind, StoreUnreadable
from tests.cli.journals import a_journal, record
from tests.recording import a_trail
from tests.servers.polling import poll
from tests.stores.archives import archive_of, journal_lines

COMMAND = Path(sys.executable).with_name("otel-audit")
TYPICAL_BYTES = 200


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def pack(source: Path, directory: Path) -> dict[str, object]:
    result = run("pack", source, directory, "--json")
    assert result.exit_code == 0, result.output
    said: dict[str, object] = json.loads(result.stdout)
    return said


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    for service in ("shop", "../bank"):
        journal = a_journal(directory, service=service, segment_bytes=3000)
        record(journal, *(f"event {number} \u2028 \U0001f600" for number in range(12)))
        journal.close()
    return directory


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_each_line_is_there_byte_for_byte(journal: Path, tmp_path: Path) -> None:
    pack(journal, tmp_path / "packed")

    assert kind_of(tmp_path / "packed") is Kind.PACKED
    with open_store(tmp_path / "packed") as store:
        lines = {stream_id: [line.content for line in store.lines_of(stream_id)] for stream_id in store.streams()}  # type: ignore[union-attr]  # they are lines
    assert lines == journal_lines(journal)


def test_there_is_a_folder_for_each_service_and_a_file_for_each_day(journal: Path, tmp_path: Path) -> None:
    pack(journal, tmp_path / "packed")

    services, days = zip(*(name.split("/") for name in files_in(tmp_path / "packed")), strict=True)
    assert set(services) == {"shop", "..%2Fbank"}
    assert all(day.endswith(".0001.parquet") for day in days)


@pytest.mark.parametrize("service", ["..", ".", "../..", "-", ""])
def test_no_name_of_a_service_leads_out_of_the_directory(service: str, tmp_path: Path) -> None:
    journal = a_journal(tmp_path / "journal", service=service)
    record(journal, "a")
    journal.close()

    pack(tmp_path / "journal", tmp_path / "packed")

    (file,) = files_in(tmp_path / "packed")
    assert Path(file).parent.parent == Path()
    assert Path(file).parent != Path()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "packed"]


def test_query_and_verify_say_the_same_of_a_packed_trail(journal: Path, tmp_path: Path) -> None:
    pack(journal, tmp_path / "packed")

    for arguments in (["--json"], ["--json", "--text", "EVENT 1"], ["--csv", "--type", "*"]):
        assert run("query", tmp_path / "packed", *arguments).stdout == run("query", journal, *arguments).stdout
    report = json.loads(run("verify", tmp_path / "packed", "--json").stdout)
    assert (report["verdict"], len(report["streams"])) == ("consistent", 2)


def test_a_line_that_is_missing_in_a_packed_trail_is_found(journal: Path, tmp_path: Path) -> None:
    path = min(journal.glob("*-*.00000001.jsonl"))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:3] + lines[4:]))
    pack(journal, tmp_path / "packed")

    result = run("verify", tmp_path / "packed")

    assert result.exit_code == 1
    assert "line 4 is not there" in result.stdout


def test_a_second_run_adds_nothing_and_a_later_one_what_is_new(tmp_path: Path) -> None:
    journal, packed = tmp_path / "journal", tmp_path / "packed"
    with AuditLogger(a_trail(journal, ledger=False)) as audit:  # whose own lines come when they come
        audit.log_mcp_call(tool_name="first")
        assert pack(journal, packed)["lines"] == 2  # the header of the segment is a line
        before = files_in(packed)
        assert pack(journal, packed)["lines"] == 0
        assert files_in(packed) == before
        audit.log_mcp_call(tool_name="second")
        assert pack(journal, packed)["lines"] == 1

    assert before.items() <= files_in(packed).items()
    assert len(run("query", packed, "--json").stdout.splitlines()) == 2


def test_a_run_goes_on_where_one_was_killed(journal: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    pack(journal, packed)
    whole = run("query", packed, "--json").stdout
    done = max(packed.rglob("*.parquet"))
    done.rename(f"{done}.unfinished")  # as a kill leaves it
    with open(f"{done}.unfinished", "r+b") as file:
        file.truncate(100)

    assert pack(journal, packed)["files"] == 1
    assert run("query", packed, "--json").stdout == whole
    assert not list(packed.rglob("*.unfinished"))


def test_the_trail_is_left_as_it_was(journal: Path, tmp_path: Path) -> None:
    before = files_in(journal)

    pack(journal, tmp_path / "packed")

    assert files_in(journal) == before


def test_the_lines_of_a_file_are_sorted_by_time(journal: Path, tmp_path: Path) -> None:
    import duckdb

    pack(journal, tmp_path / "packed")

    for path in (tmp_path / "packed").rglob("*.parquet"):
        times = duckdb.connect().execute("SELECT time_ns FROM read_parquet(?)", [str(path)]).fetchall()
        assert times == sorted(times)


def test_typical_events_take_few_bytes(tmp_path: Path) -> None:
    with AuditLogger(a_trail(tmp_path / "journal", ledger=False)) as audit:
        for number in range(5000):
            alice = AuditPrincipal(username=f"user-{number % 50}", id=f"00u{number % 50}", roles=["analyst"])
            audit.log_http_request(
                method="GET", path=f"/orders/{number}", status_code=200, principal=alice, duration_ms=number % 7
            )
            audit.log_mcp_call(
                tool_name="get_features", principal=alice, resource=AuditResource(type="view", name="drivers")
            )

    said = pack(tmp_path / "journal", tmp_path / "packed")

    assert said["lines"] == 10_001
    assert isinstance(said["bytes"], int)
    assert said["bytes"] / 10_001 < TYPICAL_BYTES


def test_damaged_bytes_are_counted_and_the_rest_is_packed(journal: Path, tmp_path: Path) -> None:
    path = min(journal.glob("*-*.jsonl"))
    path.write_bytes(path.read_bytes() + b'{"event_type":"tor')

    result = run("pack", journal, tmp_path / "packed")

    assert result.exit_code == 1
    assert "1 damaged pieces were passed over" in result.stderr
    assert run("query", tmp_path / "packed", "--json").stdout == run("query", journal, "--json").stdout


def test_the_line_that_a_live_writer_is_at_is_left_to_the_next_run(tmp_path: Path) -> None:
    journal, packed = tmp_path / "journal", tmp_path / "packed"
    with AuditLogger(a_trail(journal, ledger=False)) as audit:  # whose own lines come when they come
        audit.log_mcp_call(tool_name="first")
        with next(journal.glob("*-*.jsonl")).open("ab") as file:
            file.write(b'{"event_type":"mcp.tools')

        result = run("pack", journal, packed, "--json")

        assert result.exit_code == 0, result.output
        assert "1 lines have no end yet" in result.stderr
        said = json.loads(result.stdout)
        assert (said["lines"], said["damaged"], said["unfinished"]) == (2, 0, 1)


def test_two_runs_at_once_are_refused(journal: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    lock = FileLock.acquire(packed / "pack.lock")
    assert lock is not None

    result = run("pack", journal, packed)
    lock.release(remove=True)

    assert result.exit_code == 1
    assert "got another process at it" in result.stderr


def test_parquet_of_something_else_is_refused(tmp_path: Path) -> None:
    import duckdb

    duckdb.connect().execute(f"COPY (SELECT 1 AS other) TO '{tmp_path / 'other.parquet'}' (FORMAT parquet)")

    with open_store(tmp_path) as store, pytest.raises(StoreUnreadable, match="expected a Parquet file of"):
        list(store.contents())
    for command in ("query", "verify"):
        result = run(command, tmp_path)
        assert result.exit_code == 1
        assert "expected" in result.stderr
    assert run("replay", tmp_path).exit_code == 2


def an_archive(journal: Path, path: Path) -> Path:
    """The lines of a journal as an archive, some of them twice."""
    archive_of(journal, path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[0]]))
    return path


def dated(journal: Path, days: int) -> None:
    """Put the lines of a journal on so many days, one after the other, and the last one on none."""
    for path in journal.glob("*-*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines):
            time_ns = int(line.split(b'"time_ns":')[1].split(b",")[0]) + number % days * 86_400 * 10**9
            lines[number] = re.sub(rb'"time_ns":\d+', b'"time_ns":%d' % time_ns, line)
        lines[-1] = lines[-1].replace(b'{"event_type"', b'{"time_ns":"none","event_type"')
        path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("of", ["journal", "archive"])
def test_lines_of_many_days_and_services_are_all_packed(journal: Path, tmp_path: Path, of: str) -> None:
    dated(journal, 4)
    source = journal if of == "journal" else an_archive(journal, tmp_path / "archive.jsonl")
    packed = tmp_path / "packed"

    assert pack(source, packed)["files"] == 2 * 5

    with open_store(packed) as store:
        lines = {stream_id: [line.content for line in store.lines_of(stream_id)] for stream_id in store.streams()}  # type: ignore[union-attr]  # they are lines
    assert lines == journal_lines(journal)
    assert len({name.split("/")[1] for name in files_in(packed)}) == 5
    assert pack(source, packed)["lines"] == 0
    assert run("query", packed, "--json").stdout == run("query", journal, "--json").stdout


@pytest.mark.parametrize("of", ["journal", "archive"])
def test_each_line_is_read_a_bounded_number_of_times(
    journal: Path, tmp_path: Path, of: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated(journal, 4)
    source = journal if of == "journal" else an_archive(journal, tmp_path / "archive.jsonl")
    asked: list[str] = []
    execute = TrailDatabase._execute

    def kept(database: TrailDatabase, sql: str, *values: Any) -> Any:
        asked.append(sql)
        return execute(database, sql, *values)

    monkeypatch.setattr(TrailDatabase, "_execute", kept)
    pack(source, tmp_path / "packed")

    scans = [sql for sql in asked if "read_csv" in sql and not sql.startswith("CREATE VIEW")]
    if of == "archive":
        assert len(scans) == 3  # to know its streams, to look for copies that differ, and to sort
    else:
        segments = len(list(journal.glob("*-*.jsonl")))
        assert sum(sql.count("/dev/fd/") for sql in scans[1:]) < segments * (1 + 5)


@pytest.mark.processes
def test_a_disk_that_is_full_leaves_no_file(journal: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    command = 'ulimit -f 2; exec "$0" pack "$@"'  # no file may have more than two kilobytes

    done = subprocess.run(
        ["bash", "-c", command, COMMAND, journal, packed], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert not [path for path in packed.rglob("*") if path.is_file()]
    assert pack(journal, packed)["files"] == 2


@pytest.mark.processes
def test_a_run_that_is_killed_is_continued_by_the_next(tmp_path: Path) -> None:
    journal, packed = tmp_path / "journal", tmp_path / "packed"
    with AuditLogger(a_trail(journal, ledger=False)) as audit:
        for number in range(20_000):
            audit.log_mcp_call(tool_name=f"tool-{number}")
    dated(journal, 10)
    begun = subprocess.Popen([COMMAND, "pack", journal, packed], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    poll(lambda: list(packed.rglob("*.parquet")), until=bool, what="a packed day")
    begun.kill()
    begun.communicate()
    done = len(list(packed.rglob("*.parquet")))

    assert pack(journal, packed)["files"] == 11 - done
    assert len(run("query", packed, "--json").stdout.splitlines()) == 20_000
    assert not list(packed.rglob("*.unfinished"))


@pytest.mark.processes
def test_of_many_runs_at_once_one_packs(journal: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    command = [str(COMMAND), "pack", str(journal), str(packed)]
    with ThreadPoolExecutor(10) as pool:
        runs = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True, check=False), range(10)))

    assert {each.returncode for each in runs} <= {0, 1}
    assert all("got another process at it" in each.stderr for each in runs if each.returncode)
    assert len(files_in(packed)) == 2
    assert run("query", packed, "--json").stdout == run("query", journal, "--json").stdout
