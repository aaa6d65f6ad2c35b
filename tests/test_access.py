"""Who looked at a trail is recorded before anything is shown, or nothing is shown."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from otel_audit import AuditLogger, AuditPrincipal, access
from otel_audit.access import AccessLog, AccessUnrecorded
from otel_audit.cli import main
from otel_audit.verification.findings import Verdict
from otel_audit.verification.verify import verify_directory
from tests.recording import a_trail, recorder

pytestmark = pytest.mark.processes

SQL = "SELECT actor_name FROM events WHERE system IS NULL"
HERE = {"OTEL_AUDIT_DIR": "", "OTEL_AUDIT_ACCESS_LOG": ""}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    with AuditLogger(a_trail(directory, ledger="true")) as audit:
        for name in ("alice", "alice", "bob"):
            audit.log_authn(outcome="success", principal=AuditPrincipal(username=name))
    return directory


@pytest.fixture
def looks(tmp_path: Path) -> Path:
    return tmp_path / "access"


def run(*arguments: str | Path, looks: Path | str, **environ: str) -> Result:
    environ = {**HERE, "OTEL_AUDIT_ACCESS_LOG": str(looks), **environ}
    return CliRunner().invoke(main, list(map(str, arguments)), env=environ)


def recorded(looks: Path) -> list[dict[str, Any]]:
    """The events of the access trail, in their order."""
    lines = [line for path in sorted(looks.glob("*-*.jsonl")) for line in path.read_bytes().splitlines()]
    return [event for line in lines if (event := json.loads(line))["event_type"] == "audit.access"]


def pair(looks: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    begun, ended = recorded(looks)
    assert ended["parent_id"] == begun["event_id"]
    assert begun["outcome"] == "unknown"
    return begun, ended


def event_id_of(journal: Path) -> str:
    (path,) = journal.glob("*-*.jsonl")
    return str(json.loads(path.read_bytes().splitlines()[1])["event_id"])


@pytest.mark.parametrize(
    ("command", "arguments", "filters", "returned"),
    [
        ("query", ["--actor", "alice", "--text", "authn"], ["actor=alice", "text=authn"], 2),
        ("query", ["--json"], None, 3),
        ("query", ["--csv"], None, 3),
        ("query", ["--limit", "1"], None, 1),
        (
            "query",
            ["--sql", SQL],
            [f"sql={SQL}"],
            3,
        ),
        (
            "query",
            ["--sql", SQL, "--json"],
            [f"sql={SQL}"],
            3,
        ),
        ("query", ["--out", "OUT"], None, 3),
        ("report", ["--actor", "bob", "--json"], ["actor=bob"], 1),
        ("report", ["--evidence", "OUT"], None, 3),
        ("export", ["--format", "ocsf"], None, 3),
        ("tail", ["-n", "2"], None, 2),
    ],
)
def test_each_command_that_shows_events_records_what_was_asked_and_how_much_came_back(
    journal: Path, looks: Path, tmp_path: Path, command: str, arguments: Sequence[str], filters: object, returned: int
) -> None:
    given = [str(tmp_path / "out") if each == "OUT" else each for each in arguments]

    result = run(command, journal, *given, looks=looks)

    assert result.exit_code == 0, result.output
    begun, ended = pair(looks)
    assert begun["resource"] == {"type": "audit.trail", "name": str(journal), "actions": []}
    assert begun["principal"]["username"] == pwd.getpwuid(int(begun["principal"]["id"])).pw_name
    for each in (begun, ended):
        assert each["attributes"]["access.command"] == command
        assert each["attributes"].get("access.filters") == filters
        assert each["attributes"]["access.uid"] == os.getuid()
        assert each["action"]["verb"] == "READ"
    assert "access.returned" not in begun["attributes"]
    assert (ended["outcome"], ended["attributes"]["access.returned"]) == ("success", returned)


def test_packing_records_how_many_lines_it_packed(journal: Path, looks: Path, tmp_path: Path) -> None:
    result = run("pack", journal, tmp_path / "packed", "--json", looks=looks)

    _, ended = pair(looks)
    assert ended["attributes"]["access.command"] == "pack"
    assert ended["attributes"]["access.returned"] == json.loads(result.stdout)["lines"] > 3


def test_a_proof_that_was_made_and_one_that_was_not_are_recorded(journal: Path, looks: Path, tmp_path: Path) -> None:
    event_id = event_id_of(journal)

    assert run("prove", event_id, journal, looks=looks).exit_code == 0
    assert run("prove", "no-such-event", journal, looks=tmp_path / "others").exit_code == 1

    _, made = pair(looks)
    assert made["attributes"]["access.filters"] == [f"event_id={event_id}"]
    assert (made["outcome"], made["attributes"]["access.returned"]) == ("success", 1)
    _, refused = pair(tmp_path / "others")
    assert (refused["outcome"], refused["error_type"]) == ("error", "ProofUnavailable")
    assert refused["attributes"]["access.returned"] == 0


def test_the_period_is_recorded(journal: Path, looks: Path) -> None:
    run("query", journal, "--since", "2026-01-02", "--until", "2026-01-03T04:05Z", looks=looks)

    begun, ended = pair(looks)

    assert begun["attributes"]["access.since"] == "2026-01-02T00:00:00+00:00"
    assert begun["attributes"]["access.until"] == "2026-01-03T04:05:00+00:00"
    assert ended["attributes"]["access.returned"] == 0


@pytest.mark.parametrize("command", ["query", "report", "export", "pack", "tail", "prove"])
def test_a_command_that_cannot_record_shows_nothing_and_says_what_to_do(
    journal: Path, tmp_path: Path, command: str
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no directory")
    out = tmp_path / "out"
    each: dict[str, list[str | Path]] = {
        "report": ["--out", out, "--json"],
        "export": ["--format", "ocsf"],
        "pack": [out],
    }
    more = each.get(command, [])
    first = [event_id_of(journal)] if command == "prove" else []

    result = run(command, *first, journal, *more, looks=blocked / "access")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert f"expected to record in {blocked}/access, which OTEL_AUDIT_ACCESS_LOG names" in result.stderr
    assert "nothing was shown. Make that directory writable" in result.stderr
    assert "Traceback" not in result.stderr
    assert not out.is_file()
    assert list(out.glob("*.parquet")) == []


def test_settings_that_are_wrong_refuse_only_where_they_may_name_an_access_trail(journal: Path, looks: Path) -> None:
    wrong = run("query", journal, looks="~/access")
    unknown = run("query", journal, looks=looks, OTEL_AUDIT_NO_SUCH="1")
    unset = run("query", journal, looks="", OTEL_AUDIT_NO_SUCH="1")

    assert (wrong.exit_code, unknown.exit_code, unset.exit_code) == (2, 2, 0)
    for each in (wrong, unknown):
        assert each.stdout == ""
        assert "who looks may have to be recorded, and the settings are wrong: " in each.stderr
    assert "alice" in unset.stdout


def test_an_access_trail_that_only_the_file_of_settings_names_counts(
    journal: Path, looks: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"access_log: {looks}\n")

    assert run("query", journal, looks="", OTEL_AUDIT_CONFIG=str(file)).exit_code == 0

    assert len(recorded(looks)) == 2


def test_a_secret_in_a_filter_is_not_in_the_access_trail(journal: Path, looks: Path) -> None:
    secret = "AKIA" + "IOSFODNN7EXAMPL3"

    result = run("query", journal, "--text", f"password=hunter2hunter2 {secret}", "--actor", secret, looks=looks)

    assert result.exit_code == 0
    raw = b"".join(path.read_bytes() for path in looks.iterdir())
    assert secret.encode() not in raw
    assert b"hunter2" not in raw
    assert any("access.filters" in path for path in pair(looks)[0]["redacted"])


def test_the_access_trail_is_a_journal_that_is_verified_and_looking_at_it_is_one_look(
    journal: Path, looks: Path
) -> None:
    run("query", journal, looks=looks)

    seen = run("query", looks, "--json", "--type", "audit.access", looks=looks)

    shown = [json.loads(line) for line in seen.stdout.splitlines()]
    assert len(shown) == 3  # the look before, and the beginning of this one
    assert len(recorded(looks)) == 4
    report = verify_directory(looks)
    assert report.verdict is Verdict.CONSISTENT
    assert {stream.service for stream in report.streams} == {"otel-audit-access"}
    assert all(stream.signed_to == stream.last_seq for stream in report.streams)


def test_neither_a_policy_nor_an_exporter_of_the_service_touches_the_access_trail(
    journal: Path, looks: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nrules:\n  - name: nothing\n    when: {}\n    level: none\n")
    service = {
        "OTEL_AUDIT_POLICY": str(policy),
        "OTEL_AUDIT_EXPORT": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_SERVICE_NAME": "shop",
    }

    assert run("query", journal, looks=looks, **service).exit_code == 0

    pair(looks)
    (stream,) = verify_directory(looks).streams
    assert stream.service == "otel-audit-access"


def many(directory: Path) -> Path:
    with recorder(directory) as audit:
        for _ in range(20_000):
            audit.log_authn(outcome="success", principal=AuditPrincipal(username="alice"))
    return directory


def started(*arguments: str | Path, looks: Path, first: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    command: list[str | Path] = [Path(sys.executable).with_name("otel-audit"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environ, "OTEL_AUDIT_ACCESS_LOG": str(looks)},
        preexec_fn=first,
    )


@pytest.mark.parametrize("form", [["--json"], ["--csv"]], ids=["json", "csv"])
def test_a_reader_that_has_seen_enough_leaves_how_much_came_back_up_to_there(
    tmp_path: Path, looks: Path, form: Sequence[str]
) -> None:
    process = started("query", many(tmp_path / "journal"), *form, looks=looks)
    assert process.stdout is not None

    process.stdout.readline()
    process.stdout.close()
    process.wait(120)

    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    _, ended = pair(looks)
    assert ended["outcome"] == "cancelled"
    assert 0 < ended["attributes"]["access.returned"] < 20_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_command_leaves_how_much_came_back(journal: Path, looks: Path, number: int) -> None:
    process = started("tail", journal, "--follow", "--json", looks=looks)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()

    process.send_signal(number)
    process.communicate(timeout=120)

    _, ended = pair(looks)
    assert (ended["outcome"], ended["attributes"]["access.returned"]) == ("cancelled", 3)


def test_a_hang_up_that_nohup_ignores_ends_no_look(journal: Path, looks: Path) -> None:
    def under_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = started("tail", journal, "--follow", "--json", looks=looks, first=under_nohup)
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(signal.SIGHUP)
    with recorder(journal) as audit:
        audit.log_authn(outcome="failure", principal=AuditPrincipal(username="nobody-else"))
    assert any(b"nobody-else" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)

    _, ended = pair(looks)
    assert ended["outcome"] == "cancelled"


def test_a_killed_command_has_left_that_it_looked(journal: Path, looks: Path) -> None:
    process = started("tail", journal, "--follow", "--json", looks=looks)
    assert process.stdout is not None
    process.stdout.readline()

    process.kill()
    process.communicate(timeout=120)

    (begun,) = recorded(looks)
    assert begun["attributes"]["access.command"] == "tail"


def test_a_server_records_each_look_from_any_thread(looks: Path) -> None:
    environ = {"OTEL_AUDIT_ACCESS_LOG": str(looks)}

    def look(number: int) -> None:
        with log.look("view", ["/srv/audit"], [f"actor={number}"]) as seen:
            seen.add(number)

    with AccessLog.from_environment(environ) as log:
        threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ended = [each for each in recorded(looks) if "parent_id" in each]
    assert sorted(each["attributes"]["access.returned"] for each in ended) == list(range(8))
    for each in ended:
        assert each["attributes"]["access.filters"] == [f"actor={each['attributes']['access.returned']}"]


def test_without_the_setting_a_look_records_nothing(tmp_path: Path) -> None:
    environ = {"OTEL_AUDIT_DIR": str(tmp_path / "journal")}
    with AccessLog.from_environment(environ) as log, log.look("view", ["here"]) as seen:
        seen.add(1)

    assert list(tmp_path.iterdir()) == []


def test_an_access_trail_that_is_full_ends_the_looks_of_a_server(looks: Path) -> None:
    environ = {"OTEL_AUDIT_ACCESS_LOG": str(looks), "OTEL_AUDIT_DIRECTORY_BYTES": str(4 << 20)}
    with AccessLog.from_environment(environ) as log:
        shown = 0

        def look() -> None:
            nonlocal shown
            with log.look("view", ["here"], ["x" * 4000] * 8):
                shown += 1

        with pytest.raises(AccessUnrecorded, match="nothing was shown"):
            deque(iter(look, object()), maxlen=0)

    assert shown
    assert len([each for each in recorded(looks) if "parent_id" not in each]) == shown


@pytest.mark.parametrize(("content", "expected"), [("1000", 1000), ("4294967295", None), ("", None), (None, None)])
def test_the_login_is_that_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: int | None
) -> None:
    file = tmp_path / "loginuid"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(access, "_LOGIN_UID", file)

    assert access.login_uid() == expected
