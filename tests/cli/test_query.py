"""`otel-audit query`: its forms of output, its messages, and the questions of the issue."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from otel_audit import AuditPrincipal, AuditResource
from otel_audit.cli import main
from otel_audit.query.columns import COLUMNS
from tests.recording import recorder
from tests.servers.polling import poll

COMMAND = Path(sys.executable).with_name("otel-audit")
TEXTS = ["actor", "target", "text", "sql", "page"]
AGENT = AuditPrincipal(username="agent-7", on_behalf_of="bob")


def run(*arguments: str | Path, directory: str | Path = "") -> Result:
    return CliRunner().invoke(main, ["query", *map(str, arguments)], env={"OTEL_AUDIT_DIR": str(directory)})


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    salaries = AuditResource(type="table", name="salaries")
    with recorder(directory) as audit:
        audit.log_http_request(
            method="GET", path="/orders/7", status_code=200, principal=AuditPrincipal(username="alice")
        )
        audit.log_authz(outcome="deny", principal=AuditPrincipal(username="alice"), resource=salaries)
        audit.log_mcp_call(tool_name="read", principal=AGENT, outcome="denied")
        audit.log_mcp_call(tool_name="read", principal=AGENT, outcome="success", resource=salaries)
    return directory


def events(result: Result) -> list[tuple[str, str]]:
    assert result.exit_code == 0, result.output
    lines = map(json.loads, result.stdout.splitlines())
    return [(line["event_type"], line["outcome"]) for line in lines]


def test_the_questions_of_an_auditor_have_answers(journal: Path) -> None:
    alice = run("--actor", "alice", "--since", "today", "--json", directory=journal)
    salaries = run("--target", "salaries", "--json", directory=journal)
    denied = run("--actor", "agent-7", "--on-behalf-of", "bob", "--outcome", "denied", "--json", directory=journal)

    assert events(alice) == [("authz.decision", "deny"), ("http.request", "success")]
    assert events(salaries) == [("mcp.tools.call", "success"), ("authz.decision", "deny")]
    assert events(denied) == [("mcp.tools.call", "denied")]


def test_a_table_shows_events_as_tail_does(journal: Path) -> None:
    tail = CliRunner().invoke(main, ["tail", str(journal)])

    assert run(journal).stdout.splitlines() == tail.stdout.splitlines()[::-1]


def test_a_page_says_how_to_get_the_next_one(journal: Path) -> None:
    first = run(journal, "--limit", "3")
    page = first.stderr.split("3 events shown; for older ones: ")[1].split()
    last = run(journal, "--limit", "3", *page)

    assert (first.stdout + last.stdout) == run(journal).stdout
    assert last.stderr == ""


def test_csv_has_a_header_and_all_columns_but_the_line(journal: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run(journal, "--csv", "--path", "/orders/*").stdout)))

    assert list(rows[0]) == [column.name for column in COLUMNS if column.name != "line"]
    assert [(row["method"], row["status_code"], row["actor_name"]) for row in rows] == [("GET", "200", "alice")]


def test_csv_can_be_cut_by_a_shell_and_keeps_a_text_with_line_ends_whole(tmp_path: Path) -> None:
    with recorder(tmp_path) as audit:
        audit.log_authz(outcome="deny", detail='one\rtwo\r\n"three",', principal=AuditPrincipal(username="alice"))

    answer = run(tmp_path, "--sql", "SELECT detail FROM events WHERE detail != ''", "--csv").stdout_bytes.decode()
    identity = run(
        tmp_path, "--sql", "SELECT actor_name FROM events WHERE event_type = 'authz.decision'", "--csv"
    ).stdout_bytes

    assert list(csv.reader(io.StringIO(answer, newline=""))) == [["detail"], ['one\rtwo\r\n"three",']]
    assert identity == b"actor_name\nalice\n"


@pytest.mark.parametrize(
    "word",
    ["=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-", "＝1+1"],
)
def test_a_spreadsheet_takes_no_text_in_csv_for_a_formula(tmp_path: Path, word: str) -> None:
    with recorder(tmp_path) as audit:
        audit.log_authz(outcome="deny", principal=AuditPrincipal(username=word), detail="a = b")

    question = "SELECT actor_name, detail, -1.5e-7::DOUBLE, -7, roles FROM events WHERE outcome = 'deny'"
    answer = run(tmp_path, "--sql", question, "--csv").stdout_bytes.decode()
    as_json = run(tmp_path, "--sql", question, "--json").stdout

    _, row = csv.reader(io.StringIO(answer, newline=""))
    assert row == [f"'{word}", "a = b", "-1.5e-07", "-7", "[]"]
    assert json.loads(as_json)["actor_name"] == word


def test_a_parquet_file_holds_the_rows(journal: Path, tmp_path: Path) -> None:
    import duckdb

    out = tmp_path / "it's.parquet"
    said = run(journal, "--out", out, "--actor", "alice").stderr

    answer = duckdb.connect().execute("SELECT event_type, line FROM read_parquet(?)", [str(out)]).fetchall()
    assert said == f"2 rows written to {out}\n"
    assert [json.loads(line)["event_type"] for _, line in answer] == [kind for kind, _ in answer]


def test_sql_answers_as_a_table_as_json_and_as_csv(journal: Path) -> None:
    question = "SELECT actor_name, count(*) AS events FROM events WHERE system IS NULL GROUP BY ALL ORDER BY ALL"

    table, as_json, as_csv = (run(journal, "--sql", question, *form) for form in ([], ["--json"], ["--csv"]))

    assert table.stdout == "actor_name  events\nagent-7     2\nalice       2\n"
    assert [json.loads(row) for row in as_json.stdout.splitlines()] == [
        {"actor_name": "agent-7", "events": 2},
        {"actor_name": "alice", "events": 2},
    ]
    assert as_csv.stdout.splitlines() == ["actor_name,events", "agent-7,2", "alice,2"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--since", "soon"], "expected a time such as 2d, 3h, yesterday"),
        (["--page", "2"], "expected a place as `otel-audit query` prints it"),
        (["--json", "--csv"], "expected one of --json, --csv and --out, got several"),
        (["--sql", "SELECT 1", "--actor", "alice"], "--sql goes with no filter"),
        (["--sql", "DROP VIEW events"], "expected one SELECT, got DROP"),
        (["--sql", "SELECT actr FROM events"], 'Candidate bindings: "actor_'),
        (["nowhere"], "which does not exist"),
        *(([f"--{name}", "a\udcff"], "expected a text in UTF-8") for name in TEXTS),
    ],
)
def test_wrong_usage_says_what_was_expected(journal: Path, arguments: list[str], says: str) -> None:
    result = run(*arguments, directory=journal)

    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())


def test_a_pipe_gets_the_rows_of_a_question_uncut(journal: Path) -> None:
    assert run(journal, "--sql", "SELECT repeat('x', 500) AS x").stdout == f"x\n{'x' * 500}\n"


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("SELEC 1", 'got Parser Error: syntax error at or near "SELEC"; docs/query.md has the columns'),
        ("SELECT actr FROM events", 'got Binder Error: Referenced column "actr" not found'),
        ("SELECT CAST('a' AS INT)", "got Conversion Error: Could not convert string 'a'"),
        ("", "expected one SELECT, got nothing; a trail is only read"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=str)
def test_a_mistake_in_sql_is_said_in_one_line(journal: Path, question: str, says: str, form: list[str]) -> None:
    result = run(journal, "--sql", question, *form)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: --sql: expected ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_directory_without_events_says_so(tmp_path: Path) -> None:
    result = run(tmp_path)

    assert (result.exit_code, result.stdout) == (0, "")
    assert "no stream is in this directory" in result.stderr
    assert f"no event found in {tmp_path}" in result.stderr


def test_a_directory_above_or_beside_a_journal_leads_to_the_journal(journal: Path) -> None:
    for wrong in (journal.parent, journal.with_name("jurnal")):
        result = run("--actor", "alice", directory=wrong)

        assert result.exit_code == 2
        assert f"did you mean {journal}?" in result.stderr


def test_terminal_controls_are_shown_as_escapes(tmp_path: Path) -> None:
    with recorder(tmp_path / "journal") as audit:
        audit.log_mcp_call(tool_name="\x1b[31mred\u202e")

    for form in ([], ["--json"], ["--sql", "SELECT tool FROM events"], ["--sql", "SELECT tool FROM events", "--json"]):
        shown = run(tmp_path / "journal", *form).stdout
        assert "red" in shown
        assert not set("\x1b\u202e") & set(shown)


@pytest.mark.processes
def test_without_duckdb_it_says_how_to_get_it(journal: Path) -> None:
    program = "import sys; sys.modules['duckdb'] = None; from otel_audit.cli import main; main()"

    done = subprocess.run(
        [sys.executable, "-c", program, "query", str(journal)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "pip install 'otel-audit[query]'" in done.stderr
    assert "Usage" not in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    ("form", "number"),
    [("--json", signal.SIGINT), ("--csv", signal.SIGINT), ("--json", signal.SIGTERM), ("--json", signal.SIGHUP)],
)
def test_an_interruption_ends_a_question_and_leaves_nothing(
    journal: Path, tmp_path: Path, form: str, number: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    endless = "SELECT count(*) FROM range(1000000000000) AS numbers(number) WHERE hash(number) = 3"
    asked = subprocess.Popen(
        [COMMAND, "query", journal, "--sql", endless, form],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        [scratch] = poll(lambda: list(temporary.iterdir()), until=bool, timeout_s=60, what="its temporary directory")
        mode = scratch.stat().st_mode & 0o777
        time.sleep(1)  # most of the time it is the question that is interrupted
        asked.send_signal(number)
        shown, said = asked.communicate(timeout=60)
    finally:
        asked.kill()

    assert asked.returncode == 130
    assert shown in ("", "count_star()\n")
    assert said == "\notel-audit query: interrupted\n"
    assert mode == 0o700
    assert list(temporary.iterdir()) == []


def test_a_file_of_the_trail_is_never_overwritten(journal: Path, tmp_path: Path) -> None:
    run_pack = CliRunner().invoke(main, ["pack", str(journal), str(tmp_path / "packed")])
    assert run_pack.exit_code == 0
    [packed] = (tmp_path / "packed").rglob("*.parquet")
    before = packed.read_bytes()

    for source in (packed, packed.parent):
        result = run(source, "--out", packed, "--actor", "alice")
        assert result.exit_code == 2
        assert "expected a FILE outside of the trail" in " ".join(result.stderr.split())
    assert packed.read_bytes() == before


def test_an_answer_that_cannot_be_written_leaves_the_former_file(journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.write_text("former")

    assert run(journal, "--out", out, "--sql", "SELECT error('no') FROM events").exit_code == 2
    assert out.read_text() == "former"
    assert run(journal, "--out", tmp_path).exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "out.parquet"]
    assert run(journal, "--out", out, "--actor", "alice").stderr == f"2 rows written to {out}\n"


@pytest.mark.parametrize(("name", "other"), [("st*r", "star"), ("[ab]", "a"), ("qu?t", "quit"), ("it's", "two words")])
def test_a_name_with_a_pattern_stands_for_itself_alone(
    journal: Path, tmp_path: Path, name: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = run(journal, "--json").stdout
    odd = tmp_path / name
    (odd / "journal").parent.mkdir()
    shutil.copytree(journal, odd / "journal")
    shutil.copytree(journal, tmp_path / other / "journal")
    for packed in (tmp_path / other / "packed", odd / "packed"):
        for _ in range(2):  # the second run reads what the first one wrote
            assert CliRunner().invoke(main, ["pack", str(packed.parent / "journal"), str(packed)]).exit_code == 0
        assert len(list(packed.rglob("*.parquet"))) == 1

    assert run(odd / "packed", "--json").stdout == answer
    report = CliRunner().invoke(main, ["verify", str(odd / "packed"), "--json"])
    assert [each["lines"] for each in json.loads(report.stdout)["streams"]] == [5]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2, 2))  # too few to hold a segment open
    assert run(odd / "journal", "--json").stdout == answer


@pytest.mark.processes
@pytest.mark.parametrize("form", [["--json"], ["--csv"], [], ["--sql", "SELECT * FROM events", "--json"]])
def test_a_reader_that_has_seen_enough_ends_the_answer_quietly(journal: Path, form: list[str]) -> None:
    with open(min(journal.glob("*-*.jsonl")), "rb+") as file:
        lines = file.read().splitlines(keepends=True)
        file.writelines(re.sub(rb'"seq":\d+', b'"seq":%d' % number, lines[-1]) for number in range(100, 2000))
    words = " ".join(map(shlex.quote, [str(COMMAND), "query", str(journal), "--limit", "2000", *form]))

    done = subprocess.run(["bash", "-c", f"{words} | head -n 1"], capture_output=True, text=True, check=False)

    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
