"""A proof is made of what a store has kept, and is the one that the journal gives."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner, Result
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from otel_audit.cli import main
from otel_audit.errors import ProofUnavailable
from otel_audit.journal.line import Line
from otel_audit.records.encoding import encoded_request
from otel_audit.signing.keys import SigningKey
from otel_audit.stores.store import pattern_of
from otel_audit.verification.proving import ProofMade, prove, prove_all
from otel_audit.verification.trail_lines import JournalLines, Place, lines_in
from tests.journal_lines import HEADER
from tests.servers import VictoriaLogs
from tests.servers.loki import LokiDouble
from tests.verification.forge import Forge, ForgedStream
from tests.verification.kept import Kept, all_lines, write_archive
from tests.verification.proven_trails import shown
from tests.verification.verifiers import of_go, of_python, of_python_command

LINES = 60_000
MEMORY_MAX_MIB = 130  # measured: 83 MiB for archives of 66 and of 165 MiB


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log store is asked for fewer lines at a time than these streams have."""
    monkeypatch.setattr("otel_audit.verification.trail_lines._NUMBERS", 3)


def mixed(forge: Forge) -> list[bytes]:
    """All lines in no order, some of them twice."""
    lines = all_lines(forge)
    lines += lines[10:30]
    random.Random(1).shuffle(lines)
    return lines


def proven(kept: Kept, lines: Sequence[bytes], stream: ForgedStream, seq: int) -> ProofMade:
    with kept.store(lines) as store:
        place = lines_in(store, for_one=True).place_at(stream.stream_id, seq)
        assert place is not None
        return prove(place)


def refused(kept: Kept, lines: Sequence[bytes], stream: ForgedStream, seq: int) -> str:
    with pytest.raises(ProofUnavailable) as caught:
        proven(kept, lines, stream, seq)
    return str(caught.value)


def test_every_line_has_the_proof_that_its_journal_gives(forge: Forge, kept: Kept) -> None:
    with kept.store(mixed(forge)) as store:
        for stream in forge.streams:
            wanted = [Line(line, seq) for seq, line in enumerate(stream.lines, 1)]
            of_store = list(
                prove_all([Place(lines_in(store, for_one=True), stream.stream_id, line) for line in wanted])
            )
            of_journal = [prove(Place(JournalLines(forge.directory), stream.stream_id, line)) for line in wanted[::7]]

            assert [made for _, made in of_store][::7] == of_journal
            assert [shown(made) for _, made in of_store if isinstance(made, ProofMade)] == stream.lines


def test_an_event_is_found_by_its_id_and_no_line_of_the_ledger_is_one(forge: Forge, kept: Kept) -> None:
    stream = forge.streams[1].log(1, event_id="wanted")
    forge.ledger.turn(("head", stream.head()))

    with kept.store(all_lines(forge)) as store:
        (place,) = lines_in(store, for_one=True).places("wanted")

        assert (place.stream_id, place.line.content) == (stream.stream_id, stream.lines[-1])
        assert lines_in(store, for_one=True).places(forge.ledger.ledger_id) == []
        assert shown(prove(place)) == stream.lines[-1]


def test_a_store_that_let_go_of_what_is_old_proves_what_is_left(tmp_path: Path, kept: Kept) -> None:
    forge = Forge(tmp_path / "journal")
    first = forge.ledger.epoch_key.verifier(forge.ledger.origin)
    stream = forge.stream().log(9)
    border = len(stream.lines)
    forge.ledger.turn(("open", stream.opening()))
    ledger_before = list(forge.ledger.lines)
    forge.ledger.begin_segment()
    forge.ledger.turn(("head", stream.head(border, edge=True)))
    stream.begin_segment().log(9)
    forge.ledger.turn(("head", stream.head()))
    left = [line for line in all_lines(forge) if line not in (*ledger_before, *stream.lines[:border])]

    made = proven(kept, left, stream, border + 4)

    assert made.signers == ()  # the line that announced the key is not there any more
    assert made.proof.check([first]).event == stream.lines[border + 3]
    without_edge = [line for line in left if not (b'"kind":"head"' in line and b'"edge"' in line)]
    assert "the ledger has no edge of the tree behind them" in refused(kept, without_edge, stream, border + 4)


def test_a_store_without_the_ledger_says_what_it_lacks(forge: Forge, kept: Kept) -> None:
    stream = forge.streams[0]

    assert "has no signed ledger" in refused(kept, stream.lines, stream, 5)


def test_what_the_ledger_here_does_not_cover_yet_is_said(forge: Forge, kept: Kept) -> None:
    stream = forge.streams[1]
    behind_the_open = [
        line for line in all_lines(forge) if b'"kind":"end"' not in line and b'"kind":"head"' not in line
    ]

    said = refused(kept, [*behind_the_open], stream, 5)

    assert "is not under a signed note yet: nothing of it is signed yet" in said
    assert "its ledger has come here too" in said


@pytest.mark.parametrize("what", ["missing", "changed", "twice"])
def test_a_line_that_is_not_as_it_was_leaves_no_proof(forge: Forge, kept: Kept, what: str) -> None:
    stream, lines = forge.streams[0], all_lines(forge)
    place = lines.index(stream.lines[7])
    other = stream.lines[7].replace(b"order", b"ordre")
    lines[place : place + 1] = {"missing": [], "changed": [other], "twice": [stream.lines[7], other]}[what]

    said = refused(kept, lines, stream, 5)

    assert "line 5 of the stream" in said
    assert "is signed, and cannot be proven" in said
    assert {"missing": "line 8 is missing", "changed": "", "twice": "two different lines have the number 8"}[
        what
    ] in said


def test_a_false_ledger_in_the_store_proves_nothing_to_who_has_the_key(
    forge: Forge, kept: Kept, tmp_path: Path, identity: SigningKey
) -> None:
    stream = forge.streams[0]
    false = Forge(tmp_path / "false", identity=SigningKey.generate())
    false.ledger.turn(("open", stream.opening()), ("head", stream.head()))

    made = proven(kept, [*false.ledger.lines, *stream.lines], stream, 5)

    assert of_python(bytes(made.proof), identity.verifier(forge.ledger.origin)).event is None


# The command.


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["prove", *map(str, arguments)], env={"OTEL_AUDIT_DIR": ""})


@pytest.fixture
def named(forge: Forge) -> Forge:
    """A trail with an event that has an id."""
    forge.ledger.turn(("head", forge.streams[1].log(1, event_id="wanted").log(3).head()))
    return forge.write()


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["archive", "gzip", "packed"])
def test_the_command_takes_each_kind_of_source_and_strangers_accept_the_proof(
    named: Forge, tmp_path: Path, identity: SigningKey, kind: str
) -> None:
    path = write_archive(tmp_path / "archive.jsonl", all_lines(named), shuffled=True)
    if kind == "gzip":
        path = tmp_path / "archive.jsonl.gz"
        path.write_bytes(gzip.compress((tmp_path / "archive.jsonl").read_bytes()))
    elif kind == "packed":
        path = tmp_path / "packed"
        assert CliRunner().invoke(main, ["pack", str(tmp_path / "archive.jsonl"), str(path)]).exit_code == 0

    result = run("wanted", path)

    key = identity.verifier(named.ledger.origin)
    assert result.exit_code == 0, result.output
    assert result.stdout_bytes == run("wanted", named.directory).stdout_bytes
    for verifier in (of_python_command, of_go):
        assert verifier(result.stdout_bytes, key, tmp_path).event == named.streams[1].lines[-4]


@pytest.mark.processes
def test_a_real_victorialogs_gives_the_proofs_of_its_journal(named: Forge, tmp_path: Path) -> None:
    with VictoriaLogs(tmp_path / "victorialogs") as running:
        sent = requests.post(
            f"{running.otlp_endpoint}/v1/logs",
            data=encoded_request(HEADER, all_lines(named)),
            headers={"Content-Type": "application/x-protobuf"},
            timeout=30,
        )
        sent.raise_for_status()
        running.wait_for("*", len(all_lines(named)))

        result = run("wanted", f"victorialogs+{running.base_url}")

    assert result.exit_code == 0, result.output
    assert result.stdout_bytes == run("wanted", named.directory).stdout_bytes


def test_a_log_store_is_asked_for_no_more_than_the_lines_of_the_proof(forge: Forge) -> None:
    stream = forge.stream()
    for number in range(20):
        stream.log(3, **({"event_id": "wanted"} if number == 10 else {}))
        forge.ledger.turn(("head", stream.head()))
    forge.write()
    with LokiDouble() as loki:
        loki.put(ExportLogsServiceRequest.FromString(encoded_request(HEADER, all_lines(forge))))

        result = run("wanted", f"loki+{loki.base_url}?start=2026-08-01T00:00:00Z")

        assert result.exit_code == 0, result.output
        assert result.stdout_bytes == run("wanted", forge.directory).stdout_bytes
        queries = {asked["query"] for asked in loki.asked}
    assert all("|~" in query for query in queries if "sequence_stream_id=~" not in query)
    escaped = pattern_of(stream.stream_id).replace("\\", "\\\\")
    asked_from = [int(query.split("number>=")[1].split()[0]) for query in queries if f'"{escaped}"' in query]
    assert 30 < max(asked_from) < 40
    assert len(stream.lines) > 60


def test_the_command_names_the_key_that_a_store_cannot_show(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal")
    key = forge.ledger.epoch_key.verifier(forge.ledger.origin)
    before = list(forge.ledger.lines)
    forge.ledger.begin_segment()
    stream = forge.stream().log(2, event_id="wanted")
    forge.ledger.turn(("open", stream.opening()), ("head", stream.head()))
    path = write_archive(tmp_path / "archive.jsonl", [line for line in all_lines(forge) if line not in before])

    result = run("wanted", path)

    assert result.exit_code == 0, result.output
    assert f"\n  {key.name}+{key.key_id.hex()}\n" in result.stderr
    assert "the lines that announced it are missing" in result.stderr
    assert json.loads(run("wanted", path, "--json").stdout)["signers"] == []


def test_a_log_of_events_has_nothing_to_prove(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event_type":"order.paid","outcome":"success","timestamp":"2026-11-29T08:00:00Z"}\n')

    result = run("wanted", path)

    assert result.exit_code == 2
    assert "expected a trail with a chain, got a log of events" in result.stderr


@pytest.mark.slow
@pytest.mark.processes
def test_the_memory_of_a_proof_does_not_grow_with_the_archive(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "journal")
    stream = forge.stream()
    for _ in range(6):
        stream.log(LINES // 6, padding="x" * 800)
        forge.ledger.turn(("head", stream.head()))
    stream.log(1, event_id="wanted")
    forge.ledger.turn(("head", stream.head()))
    path = write_archive(tmp_path / "archive.jsonl", all_lines(forge))
    peak = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    script = (
        f"from otel_audit.cli import main\ntry:\n main(['prove', 'wanted', {str(path)!r}, '--out', 'x'])\n"
        f"except SystemExit as end:\n assert not end.code\n{peak}"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OTEL_AUDIT_DIR": ""},
    )

    held_mib = int(done.stdout.split()[-1]) >> 10
    print(f"archive {path.stat().st_size >> 20} MiB, peak {held_mib} MiB")
    assert held_mib < MEMORY_MAX_MIB
