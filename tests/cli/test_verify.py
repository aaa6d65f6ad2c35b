"""`otel-audit verify`: the sentence, the exit code, and the JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest
from click.testing import CliRunner, Result
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.cli import main
from otel_audit.records.encoding import encoded_request
from otel_audit.signing.keys import SigningKey
from tests.journal_lines import HEADER
from tests.servers.loki import LokiDouble
from tests.verification.forge import Forge, each_line
from tests.verification.kept import all_lines, delivered, write_archive


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)], env={"OTEL_AUDIT_DIR": ""})


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    forge = Forge(tmp_path / "journal", identity=SigningKey.generate())
    forge.honest_stream(segments=2)
    forge.write()
    delivered(forge)
    return forge


def test_the_first_line_is_the_verdict_and_the_exit_code_goes_with_it(forge: Forge, tmp_path: Path) -> None:
    directory = forge.directory
    assert forge.identity is not None
    key = str(forge.identity.verifier("otel-audit/shop"))
    note = tmp_path / "kept.note"
    note.write_bytes(bytes(forge.ledger.notes[2]))

    without, pinned, kept = run(directory), run(directory, "--key", key), run(directory, "--known", note)

    assert (without.exit_code, pinned.exit_code, kept.exit_code) == (0, 0, 0)
    assert without.stdout.startswith("CONSISTENT: no contradiction was found in the trail in ")
    assert pinned.stdout.startswith("PROVEN: the 44 signed lines of the trail in ")
    assert " by --key; none is changed, missing or out of place\n" in pinned.stdout
    assert kept.stdout.startswith("PROVEN: 13 of the 44 signed lines of the trail in ")
    assert " by --known; the other 31 were signed later, and are not vouched for; none is changed," in kept.stdout


def test_a_broken_trail_is_said_with_stream_and_line(forge: Forge) -> None:
    stream = forge.streams[0]
    each_line(stream.path(1), lambda lines: lines[:8] + lines[9:])

    result = run(forge.directory)

    assert result.exit_code == 1
    first = result.stdout.splitlines()[0]
    assert first.startswith("BROKEN: the trail in ")
    assert first.endswith(f"is not as it was written: {stream.stream_id}: line 9 is not there")
    assert "What is wrong:\n" in result.stdout


def test_a_trail_that_is_not_proven_by_the_pin_ends_with_exit_code_1(forge: Forge, tmp_path: Path) -> None:
    other = Forge(tmp_path / "other", log_name="otel-audit/other")
    note = tmp_path / "kept.note"
    note.write_bytes(bytes(other.ledger.notes[0]))

    result = run(forge.directory, "--known", note)

    assert result.exit_code == 1
    assert result.stdout.startswith("CONSISTENT, not proven: ")
    assert "What was not proven, and why:\n" in result.stdout


def test_what_is_printed_to_be_kept_proves_the_trail_the_next_time(forge: Forge) -> None:
    kept = run(forge.directory).stdout.splitlines()[-1]

    assert run(forge.directory, "--known", kept).stdout.startswith("PROVEN: ")


def test_an_archive_is_verified_alone_and_beside_the_journal(forge: Forge, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))

    alone, as_path, beside = run("--archive", path), run(path), run(forge.directory, "--archive", path)

    assert alone.stdout.startswith("CONSISTENT: ")
    assert as_path.stdout == alone.stdout
    assert beside.stdout.startswith("PROVEN: ")


def test_an_anchor_that_is_too_old_is_a_finding(forge: Forge) -> None:
    assert forge.identity is not None
    key = str(forge.identity.verifier("otel-audit/shop"))

    result = run(forge.directory, "--key", key, "--anchored-within", "24h")

    assert result.exit_code == 1
    assert "the newest note that your pin vouches for is " in result.stdout


def test_a_trail_is_read_from_the_segment_in_which_a_time_lies(forge: Forge) -> None:
    late = json.loads(run(forge.directory, "--from", "2026-12-01", "--json").stdout)
    early = json.loads(run(forge.directory, "--from", "2026-01-01T00:00Z", "--json").stdout)

    assert (late["verdict"], early["verdict"]) == ("consistent", "consistent")
    assert [each["first_seq"] for each in early["streams"]] == [1]
    assert [each["first_seq"] for each in late["streams"]] == [forge.streams[0].segments[1]]
    assert late["streams"][0]["signed_to"] == len(forge.streams[0].lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--key", "nonsense"], "expected <name>+<8 hex digits>+<base64>"),
        (["--known", "nonsense"], "expected a file with a note, or a vkey"),
        (["--anchored-within", "soon"], "expected an age such as 90s"),
        (["--anchored-within", "1h"], "goes with --key or --known"),
        (["--from", "soon"], "expected a time such as 2d, 3h, yesterday, 2026-11-29"),
    ],
)
def test_wrong_usage_says_what_was_expected(forge: Forge, arguments: list[str], says: str) -> None:
    result = run(forge.directory, *arguments)

    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", " ").split())


def test_a_log_store_is_verified_by_its_url_alone_and_beside_nothing_but_a_journal(
    forge: Forge, tmp_path: Path
) -> None:
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    with LokiDouble() as loki:
        loki.put(ExportLogsServiceRequest.FromString(encoded_request(HEADER, all_lines(forge))))
        url = f"loki+{loki.base_url}?start=2026-09-01T00:00:00Z"
        alone, both = run(url), run(url, "--archive", path)

    assert alone.stdout.startswith(f"CONSISTENT: no contradiction was found in the trail in loki+{loki.base_url}")
    assert both.exit_code == 2
    assert "expected the directory of a journal to compare with" in " ".join(both.stderr.split())


def test_a_trail_is_not_held_against_itself(forge: Forge) -> None:
    result = run(forge.directory, "--archive", forge.directory)

    assert result.exit_code == 2
    assert "expected two sides" in " ".join(result.stderr.replace("│", " ").split())


def test_a_known_file_of_other_bytes_is_said_in_few_words(forge: Forge, tmp_path: Path) -> None:
    path = tmp_path / "kept.note"
    path.write_bytes(bytes(range(256)) * 40)

    result = run(forge.directory, "--known", path)

    assert (result.exit_code, len(result.stderr) < 2000) == (2, True)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(forge: Forge, tmp_path: Path) -> None:
    assert forge.identity is not None
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    os.mkfifo(forge.streams[0].path(9))

    proof = run("--proof", pipe, "--key", str(forge.identity.verifier("otel-audit/shop")))
    trail = run(forge.directory)

    assert (proof.exit_code, trail.exit_code) == (2, 2)
    assert "which is not a file" in " ".join(proof.stderr.replace("│", " ").split())
    assert forge.streams[0].path(9).name in trail.stderr


def test_a_time_to_begin_at_is_for_a_journal(forge: Forge, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))

    result = run("--archive", path, "--from", "2026-12-01")

    assert result.exit_code == 2
    assert "--from goes with the directory of a journal" in " ".join(result.stderr.replace("│", " ").split())


def test_a_log_of_events_cannot_be_verified(tmp_path: Path) -> None:
    path = tmp_path / "feast_audit.log"
    path.write_text('{"event_type":"x","timestamp":"2026-01-01T00:00:00Z","request_id":"1"}\n')

    result = run(path)

    assert result.exit_code == 2
    assert "which has no chain" in result.stderr


def test_the_json_is_as_its_schema_says(forge: Forge, tmp_path: Path) -> None:
    schema = json.loads(CliRunner().invoke(main, ["schema", "--report"]).stdout)
    each_line(forge.streams[0].path(1), lambda lines: lines[:8] + lines[9:])
    without_ledger = Forge(tmp_path / "empty").directory

    for directory in (forge.directory, without_ledger):
        jsonschema.validate(json.loads(run(directory, "--json").stdout), schema)


def test_terminal_controls_in_a_trail_are_shown_as_escapes(forge: Forge) -> None:
    stream = forge.stream().log(1)
    forge.ledger.turn(("open", stream.opening(service="\x1b[31mshop")), ("end", stream.head()))
    forge.write()

    assert "\x1b" not in run(forge.directory).stdout
