"""Each command speaks to programs too: `--json`, or a reason in the documents why there is none."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
from click.testing import CliRunner, Result

from otel_audit import AuditEvent, AuditLogger, AuditPrincipal
from otel_audit.cli import main
from otel_audit.cli.command import COMMANDS
from otel_audit.reporting.schema import TABLES, trail_report_schema
from otel_audit.signing.keys import SigningKey, VerifierKey
from otel_audit.verification.proof import EventProof
from tests.policy.test_tags import logger, request
from tests.recording import a_trail
from tests.verification.forge import NOW_NS, Forge
from tests.verification.kept import all_lines, write_archive

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path, directory: str | Path = "") -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), env={"OTEL_AUDIT_DIR": str(directory)})


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    with AuditLogger(a_trail(directory, ledger="true")) as audit:
        audit.log(AuditEvent(event_type="authn.failure", event_id="e-1", principal=AuditPrincipal(username="alice")))
    return directory


def rows() -> dict[str, str]:
    """What the documents say of the option, by command."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("### Output for programs\n")[2].partition("\n### ")[0]
    said = re.findall(r"^\| (`.*?`) \| (.*) \|$", section, re.MULTILINE)
    return {name: what for names, what in said for name in re.findall(r"`([a-z]+)`", names)}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_the_option_or_the_documents_say_why_not(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    has_option = any("--json" in parameter.opts for parameter in command.params)

    assert rows()[name].startswith("no such option: ") is not has_option


def test_a_proof_says_for_programs_what_it_proves_and_by_which_keys(journal: Path, tmp_path: Path) -> None:
    out = tmp_path / "event.tlog-proof"

    result = run("prove", "e-1", journal, "--json", "--out", out)

    said = json.loads(result.stdout)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert said["proof"].encode() == out.read_bytes()
    shown = EventProof.parse(out.read_bytes()).check([VerifierKey.parse(key) for key in said["signers"]])
    assert (said["stream_id"], said["seq"], said["origin"]) == (shown.stream_id, shown.seq, shown.origin)


def test_a_proof_that_there_is_not_says_why_for_programs(journal: Path) -> None:
    result = run("prove", "e-2", journal, "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["message"].startswith("expected an event with the id 'e-2' in ")


def test_keys_are_said_for_programs(tmp_path: Path) -> None:
    file = tmp_path / "identity.pem"

    made = run("keygen", file, "--json")
    printed = run("vkey", file, "--json")

    assert json.loads(made.stdout) == {"file": str(file)}
    key = run("vkey", file).stdout.strip()
    assert json.loads(printed.stdout) == {"vkey": key, "name": "otel-audit/unknown_service"}


def valid(result: Result) -> dict[str, Any]:
    """A report, as its schema has it."""
    report: dict[str, Any] = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(trail_report_schema())
    jsonschema.Draft202012Validator(trail_report_schema()).validate(report)
    return report


def test_a_report_is_valid_under_its_schema_whatever_the_trail(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "signed", identity=SigningKey.generate())
    stream = forge.honest_stream()
    stream.gap()
    eve = {"username": "eve", "id": "u-9", "issuer": "https://id"}
    stream.log(principal=eve, outcome="denied", tags=["privileged"])
    forge.ledger.turn(("head", stream.head()))
    forge.write()
    log = tmp_path / "feast.log"
    log.write_text('{"event_type":"http.request","timestamp":"2026-01-01T00:00:00Z"}\n')
    tagged = tmp_path / "tagged"
    with logger(tagged) as audit:
        request(audit, "/admin/users", "denied")
        audit.log_authn(outcome="failure")

    reports = [
        valid(run("report", source, "--json", *more))
        for source, more in (
            (forge.directory, ()),
            (forge.directory, ("--since", "2026-09-21T14:13:20.5Z", "--rows", "1")),
            (write_archive(tmp_path / "archive.jsonl", all_lines(forge)), ()),
            (log, ()),
            (tagged, ("--since", "1h")),
            (tagged, ("--actor", "alice")),
        )
    ]

    filled = {name for report in reports for name in TABLES if report[name] is not None and report[name]["rows"]}
    assert filled >= TABLES.keys() - {"new_actors"}, "a table that no report fills is not held against its schema"
    assert reports[3]["verification"] is None


def test_new_actors_are_valid_under_the_schema(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "signed")
    stream = forge.stream().log(2, principal={"username": "alice"})
    forge.ledger.turn(("open", stream.opening()))
    stream.time_ns += 10 * 10**9
    stream.log(1, principal={"username": "bob"})
    forge.ledger.turn(("end", stream.head()))
    forge.write()

    report = valid(run("report", forge.directory, "--json", "--since", f"{_iso(NOW_NS + 5 * 10**9)}"))

    assert [row["actor"] for row in report["new_actors"]["rows"]] == ["bob"]


def test_the_schema_of_a_report_is_printed() -> None:
    assert json.loads(run("schema", "--trail-report").stdout) == trail_report_schema()


def test_a_period_is_exported(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "times")
    stream = forge.stream().log(2)
    for _ in range(3):
        stream.time_ns += 10 * 10**9
        stream.log(1)
    forge.write()

    def exported(*arguments: str) -> list[int]:
        result = run("export", forge.directory, "--format", "ocsf", *arguments)
        assert result.exit_code == 0, result.output
        return [json.loads(line)["metadata"]["sequence"] for line in result.stdout.splitlines()]

    first, last = _iso(NOW_NS + 10 * 10**9), _iso(NOW_NS + 30 * 10**9)
    assert exported() == [2, 3, 4, 5, 6]
    assert exported("--since", first) == [4, 5, 6]
    assert exported("--until", last) == [2, 3, 4, 5]
    assert exported("--since", first, "--until", last) == [4, 5]


def _iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 10**9, UTC).isoformat()


def _read_to_the_end(terminal: int) -> bytes:
    with open(terminal, "rb", buffering=0) as file:
        seen = b""
        with suppress(OSError):  # EIO: the other side is closed
            while more := file.read(1 << 16):
                seen += more
    return seen


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "shown", "said"),
    [
        ("report --json {}", b"verifying", b"alice"),
        ("export --format ocsf {}", b"exporting", b"alice"),
        ("query --json {}", b"reading", b"alice"),
        ("pack {} {}/packed", b"reading", b"lines packed"),
    ],
    ids=["report", "export", "query", "pack"],
)
def test_progress_is_shown_on_a_terminal_and_nowhere_else(
    journal: Path, arguments: str, shown: bytes, said: bytes
) -> None:
    words = [word.replace("{}", str(journal)) for word in arguments.split()]
    command: list[str | Path] = [Path(sys.executable).with_name("otel-audit"), *words]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | {"TERM": "xterm"}
    ours, theirs = pty.openpty()

    with ThreadPoolExecutor(1) as reader:  # a terminal that nobody reads is full after 4 KiB
        seen = reader.submit(_read_to_the_end, ours)
        on_terminal = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=theirs, env=environ, timeout=60, check=True
        )
        os.close(theirs)
        assert shown in seen.result()
    elsewhere = subprocess.run(command, capture_output=True, env=environ, timeout=60, check=True)

    assert elsewhere.stderr == b""
    for each in (on_terminal, elsewhere):
        assert said in each.stdout
