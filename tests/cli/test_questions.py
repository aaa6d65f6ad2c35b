"""The questions of docs/query.md, asked of a trail as somebody asks who knows nothing but the documents."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
import requests

from otel_audit import AuditAction, AuditEvent, AuditLogger, AuditPrincipal, AuditResource, AuditSource
from otel_audit.event import PrincipalKind
from otel_audit.journal.line import Line
from otel_audit.records.encoding import encoded_request
from otel_audit.signing.keys import create_identity, read_identity
from otel_audit.stores.directory import DirectoryStore
from tests.journal_lines import HEADER
from tests.recording import a_trail
from tests.servers import VictoriaLogs
from tests.verification.kept import write_archive
from tests.verification.verifiers import of_python_command

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "query.md"
JOURNALS = ("one process", "dead process and new key")
ALICE = AuditPrincipal(username="alice", id="u-1", issuer="https://id.example", roles=["analyst"], auth_type="oidc")
BOB = AuditPrincipal(username="bob", auth_type="oidc")
ALINA = AuditPrincipal(username="alina", auth_type="oidc")
AGENT_7 = AuditPrincipal(username="agent-7", kind=PrincipalKind.SERVICE, on_behalf_of="bob")
AGENT_7_OF_ALICE = AuditPrincipal(username="agent-7", kind=PrincipalKind.SERVICE, on_behalf_of="alice")
AGENT_70 = AuditPrincipal(username="agent-70", kind=PrincipalKind.SERVICE, on_behalf_of="bob")
SALARIES = AuditResource(type="table", name="salaries", actions=["READ"])


@dataclass(frozen=True)
class Answers:
    """What the commands under each question printed, and where they ran."""

    said: Mapping[str, str]
    directory: Path
    streams: int

    @property
    def recorded(self) -> int:
        """The lines of all streams: 162 events, and the header of each stream."""
        return 162 + self.streams

    def lines(self, question: str, command: int = 0) -> list[str]:
        """What one command of a question printed on stdout."""
        return self.said[question].split("\0")[command].splitlines()


def questions() -> dict[str, list[str]]:
    """The commands of the section, by the question above them."""
    section = PAGE.read_text(encoding="utf-8").partition("## Questions\n")[2].partition("\n## ")[0]
    block = section.partition("```sh\n")[2].partition("\n```")[0]
    asked: dict[str, list[str]] = {}
    for paragraph in block.split("\n\n"):
        question, *commands = paragraph.splitlines()
        if question.startswith("# "):
            asked[question.removeprefix("# ")] = "\n".join(commands).replace("\notel-audit", "\0otel-audit").split("\0")
    return asked


def events_of(today: date) -> list[AuditEvent]:
    """Three days of a service: people, an agent on behalf of several, failed logins, and some hundred others."""
    found: list[AuditEvent] = []

    def log(day: int, hour: int, event_type: str, who: AuditPrincipal, outcome: str, **more: object) -> None:
        moment = datetime(today.year, today.month, today.day, hour, 30, tzinfo=UTC) - timedelta(days=day)
        fields = {"event_type": event_type, "principal": who, "outcome": outcome, **more}
        found.append(AuditEvent.model_validate({"timestamp": moment.isoformat(), **fields}))

    for number in range(150):
        who = (BOB, ALINA)[number % 2]
        action = AuditAction(method="GET", path=f"/orders/{number}")
        log(number % 3, number % 24, "http.request", who, "success", action=action, status_code=200)
    log(2, 9, "http.request", ALICE, "success", action=AuditAction(method="GET", path="/before"), status_code=200)
    log(1, 0, "authn.success", ALICE, "success", source=AuditSource(ip="192.0.2.7"))
    log(
        1,
        10,
        "http.request",
        ALICE,
        "success",
        action=AuditAction(method="GET", path="/tables/salaries"),
        resource=SALARIES,
        status_code=200,
    )
    log(
        1,
        23,
        "http.request",
        ALICE,
        "deny",
        action=AuditAction(method="DELETE", path="/tables/salaries"),
        resource=SALARIES,
        status_code=403,
    )
    log(0, 0, "http.request", ALICE, "success", action=AuditAction(method="GET", path="/after"), status_code=200)
    export = AuditAction(mcp_tool="export_table")
    log(1, 11, "mcp.tools.call", AGENT_7, "denied", action=export, resource=SALARIES, reason="no export of it")
    log(1, 12, "mcp.tools.call", AGENT_7, "success", action=AuditAction(mcp_tool="list_tables"))
    log(2, 12, "mcp.tools.call", AGENT_7, "deny", action=AuditAction(mcp_tool="drop_table"))
    log(1, 13, "mcp.tools.call", AGENT_7_OF_ALICE, "denied", action=export)
    log(1, 14, "mcp.tools.call", AGENT_70, "denied", action=export)
    log(
        1,
        15,
        "http.request",
        BOB,
        "success",
        action=AuditAction(method="GET", path="/search"),
        detail="salaries of 2025",
        status_code=200,
    )
    log(1, 16, "authn.failure", AuditPrincipal(username="mallory"), "failure", source=AuditSource(ip="192.0.2.66"))
    return found


def record(directory: Path, identity: str, events: Sequence[AuditEvent], *, dies: bool = False) -> None:
    """Record events under an identity, which is made if there is none. With `dies`, this process is killed then."""
    if not (directory / identity).exists():
        create_identity(directory / identity)
    trail = a_trail(directory / "journal", ledger="true", identity_key=str(directory / identity))
    with AuditLogger(trail) as audit:
        for each in events:
            audit.log(each)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)


def record_by_several(directory: Path, today: date) -> None:
    """A process dies, the next one takes over, and the last one signs with a new identity."""
    script = (
        "import sys; from datetime import date; from pathlib import Path; from tests.cli.test_questions import *\n"
        "events = events_of(date.fromisoformat(sys.argv[2]))\n"
        "record(Path(sys.argv[1]), 'former.pem', events[::3], dies=True)"
    )
    command = [sys.executable, "-c", script, str(directory), today.isoformat()]
    done = subprocess.run(command, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    record(directory, "former.pem", events_of(today)[1::3])
    record(directory, "identity.pem", events_of(today)[2::3])


@pytest.fixture(scope="module", params=[*JOURNALS, "archive", "packed trail", "VictoriaLogs"])
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """The answers of a journal, or those of another store, which is then the SOURCE of each command."""
    with ExitStack() as stack:
        while True:
            directory = tmp_path_factory.mktemp("questions")
            today = datetime.now(UTC).date()
            if request.param == "dead process and new key":
                record_by_several(directory, today)
            else:
                record(directory, "identity.pem", events_of(today))
            source = source_of(request.param, directory, stack)
            said = {
                question: asked(directory, [re.sub(r"^(otel-audit \w+)", rf"\1 {source}", each) for each in commands])
                for question, commands in questions().items()
            }
            if datetime.now(UTC).date() == today:  # else `yesterday` was another day to some of them
                yield Answers(said, directory, 3 if request.param == "dead process and new key" else 1)
                return


def source_of(kind: str, directory: Path, stack: ExitStack) -> str:
    """The SOURCE of the commands, into which the journal was copied; empty for the journal itself."""
    if kind in JOURNALS:
        return ""
    if kind == "packed trail":
        asked(directory, ["otel-audit pack journal packed"])
        return "packed"
    with DirectoryStore(directory / "journal") as journal:
        lines = [
            each.content
            for stream_id in journal.streams()
            for each in journal.lines_of(stream_id)
            if isinstance(each, Line)
        ]
    if kind == "archive":
        write_archive(directory / "archive.jsonl", lines, shuffled=True)
        return "archive.jsonl"
    running = stack.enter_context(VictoriaLogs(directory / "victorialogs"))
    sent = requests.post(
        f"{running.otlp_endpoint}/v1/logs",
        data=encoded_request(HEADER, lines),
        headers={"Content-Type": "application/x-protobuf"},
        timeout=30,
    )
    sent.raise_for_status()
    running.wait_for("*", len(lines))
    return f"victorialogs+{running.base_url}"


def asked(directory: Path, commands: Sequence[str]) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    environ["OTEL_AUDIT_DIR"] = str(directory / "journal")
    said = []
    for command in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=directory,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        said.append(done.stdout)
    return "\0".join(said)


def words(line: str) -> list[str]:
    """The columns of a line, without its time."""
    return re.split(r"\s{2,}", line)[1:]


def test_what_did_alice_do_yesterday(answers: Answers) -> None:
    lines = answers.lines("What did alice do yesterday?")

    assert [words(line)[:4] for line in lines] == [
        ["deny", "http.request", "alice (u-1)", "DELETE /tables/salaries table/salaries"],
        ["success", "http.request", "alice (u-1)", "GET /tables/salaries table/salaries"],
        ["success", "authn.success", "alice (u-1)", "-"],
    ]


def test_who_touched_salaries(answers: Answers) -> None:
    question = "Who touched the table `salaries`?"

    assert [words(line)[2].split()[0] for line in answers.lines(question)] == ["alice", "agent-7", "alice"]
    assert answers.lines(question, 1) == ["actor_name", "agent-7", "alice"]
    named = answers.lines("Where else is it named?")
    assert len(named) == 4
    assert sum("/search" in line for line in named) == 1


def test_which_calls_of_agent_7_on_behalf_of_bob_were_denied(answers: Answers) -> None:
    lines = answers.lines("Which calls of agent-7 on behalf of bob were denied?")

    assert len(lines) == 2
    assert "export_table" in lines[0]
    assert "no export of it" in lines[0]
    assert "drop_table" in lines[1]


def test_is_the_trail_whole(answers: Answers) -> None:
    lines = answers.lines("Is the trail whole?")

    assert lines[0].startswith("CONSISTENT: no contradiction was found in the trail in ")
    streams = [re.search(r"  lines 1 to (\d+), chained to (\d+), signed to (\d+)$", line) for line in lines]
    ends = [found.groups() for found in streams if found is not None]
    assert len(ends) == answers.streams
    assert all(len(set(each)) == 1 for each in ends)
    assert sum(int(each[0]) for each in ends) == answers.recorded
    assert any("its process died; taken over at line" in line for line in lines) is (answers.streams > 1)


def test_one_file_convinces_an_auditor(answers: Answers, tmp_path: Path) -> None:
    """Who has nothing of ours but the file and a key that came separately, and Python's standard library."""
    assert answers.lines("Which one file convinces an auditor who trusts nobody here?") == []
    evidence = tmp_path / "evidence.zip"
    evidence.write_bytes((answers.directory / "evidence.zip").read_bytes())
    key = str(read_identity(answers.directory / "identity.pem").verifier("otel-audit/unknown_service"))

    done = subprocess.run(
        [sys.executable, "-I", "-S", "evidence.zip", "--key", key],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"PROVEN: the key vouches for all {answers.recorded} lines"


@pytest.mark.parametrize("answers", JOURNALS, indirect=True)
def test_the_key_of_each_identity_vouches_for_what_it_signed(answers: Answers) -> None:
    """Below the new identity's key are all lines, and below the former one's those of the first two processes."""
    for identity in ("identity.pem", "former.pem")[: 1 + (answers.streams > 1)]:
        key = read_identity(answers.directory / identity).verifier("otel-audit/unknown_service")
        said = asked(answers.directory, [f"otel-audit verify --json --key '{key}' || true"])
        report = json.loads(said)
        vouched = [each["anchored_to"] for each in report["streams"]]
        signed = [each["signed_to"] for each in report["streams"]]
        if identity == "identity.pem":
            assert vouched == signed
            continue
        assert (report["verdict"], vouched[1:]) == ("consistent", [signed[1], 0])
        assert "identity" in {each["kind"] for each in report["findings"]}
        words = asked(answers.directory, [f"otel-audit verify --key '{key}' || true"]).splitlines()[0]
        assert words.endswith(f"{sum(vouched)} of the {sum(signed)} signed lines are vouched for")


@pytest.mark.parametrize("answers", JOURNALS, indirect=True)
def test_one_event_is_proven_by_the_key_of_its_time(answers: Answers) -> None:
    key = read_identity(answers.directory / "identity.pem").verifier("otel-audit/unknown_service")
    events = [json.loads(line) for line in asked(answers.directory, ["otel-audit query --json"]).splitlines()]
    newest = max(events, key=lambda each: (each["stream_id"], each["seq"]))

    said = asked(answers.directory, [f"otel-audit prove {newest['event_id']} --out event.tlog-proof 2>&1"])
    proof = (answers.directory / "event.tlog-proof").read_bytes()

    assert json.loads(of_python_command(proof, str(key), answers.directory).event or b"{}") == newest
    own = [line.strip() for line in said.splitlines() if line.startswith("  otel-audit/unknown_service/")]
    assert len(own) == 2
    assert (len(own[1]) < len(own[0])) is (answers.streams > 1)  # only the id of a key that the ledger does not name


@pytest.mark.parametrize("answers", JOURNALS, indirect=True)
def test_a_changed_trail_is_not_whole(answers: Answers, tmp_path: Path) -> None:
    """The same question after somebody has removed what agent-7 was denied."""
    journal = tmp_path / "journal"
    journal.mkdir()
    for path in (answers.directory / "journal").iterdir():
        content = path.read_bytes()
        if path.name.count("-") == 4 and path.suffix == ".jsonl":
            content = b"".join(line for line in content.splitlines(True) if b"no export of it" not in line)
        (journal / path.name).write_bytes(content)

    with pytest.raises(AssertionError, match=r"BROKEN: the trail in (?s:.*)is not there"):
        asked(tmp_path, questions()["Is the trail whole?"])


def test_each_question_of_the_page_has_an_answer_here(answers: Answers) -> None:
    assert answers.lines("Who was denied most often?")[1].split() == ["agent-7", "3"]
    assert (answers.directory / "failed-logins.csv").read_text().count("mallory") == 1
    assert answers.said.keys() == questions().keys()
