"""One file for an auditor: what is in it, checked by its own program on a bare Python."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from zipfile import ZipFile

import pytest

from otel_audit import AuditLogger, AuditPrincipal
from otel_audit.errors import AuditError
from otel_audit.signing.keys import SigningKey
from otel_audit.stores.columns import load_duckdb
from otel_audit.stores.location import open_store
from otel_audit.verification.pins import Pins
from tests.recording import a_trail, recorder
from tests.reporting.evidence_files import (
    LOG,
    MANIFEST,
    a_signed_trail,
    checked,
    content_of,
    contents_of,
    evidence_of,
    key_of,
    lines_of,
    run,
)
from tests.verification.forge import DAY_NS, NOW_NS, Forge
from tests.verification.kept import Kept, all_lines, write_archive
from tests.verification.test_classes import verified

pytestmark = pytest.mark.processes


def an_actor(forge: Forge, number: int) -> None:
    """A stream in which alice and bob take turns."""
    stream = forge.stream().log(2)
    forge.ledger.turn(("open", stream.opening()))
    for each in range(number):
        stream.log(principal={"username": ("alice", "bob")[each % 2]}, event_id=f"e-{each}")
    forge.ledger.turn(("end", stream.head()))


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return a_signed_trail(tmp_path / "signed")


def test_the_file_is_proven_by_its_own_program_on_a_bare_python(forge: Forge) -> None:
    evidence = evidence_of(forge.directory)

    code, said = checked(evidence, "--key", key_of(forge))

    assert (code, said.splitlines()[-1]) == (0, "PROVEN: the key vouches for all 67 lines")
    assert "67 lines of 2 streams; 2 proofs" in said


def test_without_a_key_it_fits_together_and_says_that_nobody_vouches_for_it(forge: Forge) -> None:
    code, said = checked(evidence_of(forge.directory))

    assert code == 0
    assert said.splitlines()[-1].startswith(
        "CONSISTENT: 67 of 67 lines are as the keys in it signed them. Nothing here"
    )


def test_the_unpacked_folder_and_a_checker_from_elsewhere_say_the_same(forge: Forge, tmp_path: Path) -> None:
    evidence = evidence_of(forge.directory)
    folder = tmp_path / "unpacked"
    with ZipFile(evidence) as archive:
        archive.extractall(folder)
    own = tmp_path / "of-the-auditor"
    shutil.copytree(Path(__file__).parents[2] / "verifiers" / "python", own)

    said = checked(evidence, "--key", key_of(forge))

    assert checked(folder, "--key", key_of(forge)) == said
    assert checked(evidence, "--key", key_of(forge), program=own / "verify_evidence.py") == said
    assert checked(folder, "--key", key_of(forge), program=own / "verify_evidence.py") == said
    listed = (folder / MANIFEST).read_text()
    assert {line.split("  ")[1] for line in listed.splitlines()} == {
        each.relative_to(folder).as_posix()
        for each in folder.rglob("*")
        if each.is_file() and each.name != MANIFEST and each.parent.name != "__pycache__"
    }


def test_its_lines_are_those_of_the_journal_and_its_table_those_of_the_question(forge: Forge, tmp_path: Path) -> None:
    evidence = evidence_of(forge.directory)
    written = [line for stream in forge.streams for line in stream.lines]
    table = tmp_path / "events.parquet"
    table.write_bytes(content_of(evidence)["events.parquet"])
    duckdb = load_duckdb(AuditError, "DuckDB")

    assert lines_of(evidence) == written
    rows = duckdb.connect().execute("SELECT line FROM read_parquet(?)", [str(table)]).fetchall()
    assert sorted(row[0].encode() for row in rows) == sorted(
        line for line in written if not line.startswith(b'{"system":"segment"')
    )
    with open_store(table) as store:
        assert list(store.streams()) == [stream.stream_id for stream in forge.streams]


def test_the_same_question_to_the_same_trail_gives_the_same_bytes(forge: Forge) -> None:
    first = evidence_of(forge.directory).read_bytes()

    assert evidence_of(forge.directory).read_bytes() == first


def test_only_its_maker_may_read_it_and_it_replaces_an_earlier_one_as_a_whole(forge: Forge) -> None:
    evidence = evidence_of(forge.directory)
    evidence.chmod(0o644)
    before = evidence.read_bytes()

    refused = run(forge.directory, "--evidence", evidence, "--prove", "no such event")
    after = evidence.read_bytes()
    again = run(forge.directory, "--evidence", evidence, "--since", "2020-01-01")

    assert refused.exit_code == 1
    assert "expected an event of the id 'no such event'" in refused.output
    assert after == before
    assert again.exit_code == 0
    assert evidence.read_bytes() != before
    assert evidence.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in evidence.parent.iterdir()] == ["evidence.zip"]


def test_a_file_that_cannot_be_written_leaves_the_earlier_one(forge: Forge) -> None:
    evidence = evidence_of(forge.directory)
    before = evidence.read_bytes()
    (evidence.parent / "evidence.zip.unfinished").mkdir()

    result = run(forge.directory, "--evidence", evidence)

    assert result.exit_code == 1
    assert evidence.read_bytes() == before


def test_a_question_about_a_person_has_only_their_events_and_proves_each(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "people", identity=SigningKey.generate())
    an_actor(forge, 10)
    forge.write()

    evidence = evidence_of(forge.directory, "--actor", "alice")

    code, said = checked(evidence, "--key", key_of(forge))
    assert (code, said.splitlines()[-1]) == (0, "PROVEN: the key vouches for all 6 lines")
    assert "5 times lines between two of a stream are not in it" in said
    assert all(b"bob" not in raw for name, raw in content_of(evidence).items() if name != "events.parquet")
    assert contents_of(evidence)["filters"] == {"actor": ["alice"]}
    assert len(contents_of(evidence)["proofs"]) == 6


def test_a_named_event_gets_a_proof_of_its_own_for_both_strangers_verifiers(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "people", identity=SigningKey.generate())
    an_actor(forge, 10)
    forge.write()

    evidence = evidence_of(forge.directory, "--prove", "e-3", "--prove", "e-4")

    named = {each["event_id"]: each["file"] for each in contents_of(evidence)["proofs"]}
    assert {"e-3", "e-4"} < named.keys()
    folder = tmp_path / "unpacked"
    with ZipFile(evidence) as archive:
        archive.extractall(folder)
    code, said = checked(folder / named["e-3"], "--key", key_of(forge), program=_verify_proof(folder))
    assert code == 0
    assert json.loads(said)["event_id"] == "e-3"


def _verify_proof(folder: Path) -> Path:
    return folder / "verifiers" / "python" / "verify_proof.py"


def test_the_key_of_an_epoch_vouches_for_what_its_successors_signed(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "epochs")
    first = str(forge.ledger.epoch_key.verifier(forge.ledger.origin))
    forge.honest_stream()
    forge.ledger.next_epoch()
    forge.honest_stream()
    forge.ledger.next_epoch()
    forge.honest_stream()
    last = str(forge.ledger.epoch_key.verifier(forge.ledger.origin))
    evidence = evidence_of(forge.write().directory)

    assert checked(evidence, "--key", first)[1].splitlines()[-1] == "PROVEN: the key vouches for all 69 lines"
    assert checked(evidence, "--key", last)[1].splitlines()[-1] == "PROVEN: the key vouches for all 69 lines"
    keys = content_of(evidence)["keys.txt"].decode().split()
    assert (keys[0], keys[-1], len(keys)) == (first, last, 3)


@pytest.mark.parametrize(
    ("whose", "expected"), [("old identity", 36), ("new identity", 47), ("first epoch", 47), ("last epoch", 47)]
)
def test_after_a_new_identity_a_key_vouches_for_as_many_lines_as_with_verify(
    tmp_path: Path, whose: str, expected: int
) -> None:
    """The old identity signed the note that announces the next epoch's key, and nothing that this key signed."""
    old, new = SigningKey.generate(), SigningKey.generate()
    forge = Forge(tmp_path / "replaced", identity=old)
    keys = {"first epoch": forge.ledger.epoch_key}
    forge.honest_stream(20)
    forge.honest_stream(10)
    forge.ledger.next_epoch()
    forge.ledger.identity = new
    forge.honest_stream(8)
    keys |= {"old identity": old, "new identity": new, "last epoch": forge.ledger.epoch_key}
    evidence = evidence_of(forge.write().directory)
    key = keys[whose].verifier(forge.ledger.origin)
    pins = Pins(known_key=key) if "epoch" in whose else Pins(identity=key)

    code, said = checked(evidence, "--key", str(keys[whose].verifier(LOG)))

    assert verified(forge, pins).vouched_lines == expected
    assert f"the key vouches for {'all' if expected == 47 else '36 of'} 47 lines" in said.splitlines()[-1]
    assert code == (expected < 47)


def test_lines_behind_the_last_signed_entry_are_named_as_not_proven(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "open", identity=SigningKey.generate())
    stream = forge.honest_stream(ended=False)
    forge.write()

    evidence = evidence_of(forge.directory)
    code, said = checked(evidence, "--key", key_of(forge))

    assert code == 1
    assert "not proven: events.jsonl, line 14: 10 lines\n" in said
    assert said.splitlines()[-1] == f"NOT ALL PROVEN: the key vouches for 13 of {len(stream.lines)} lines"
    (without,) = contents_of(evidence)["without_proof"]
    assert "is not under a signed note yet" in without["why"]


def test_what_retention_has_left_is_proven(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "retained", identity=SigningKey.generate())
    stream = forge.honest_stream(segments=3)
    forge.ledger.time_ns += 60 * DAY_NS
    forge.ledger.turn(("retain", stream.removal(1)))
    forge.write()
    stream.path(1).unlink()
    left = len(stream.lines) - stream.segments[1] + 1

    evidence = evidence_of(forge.directory)

    assert len(contents_of(evidence)["proofs"]) == 1
    code, said = checked(evidence, "--key", key_of(forge))
    assert (code, said.splitlines()[-1]) == (0, f"PROVEN: the key vouches for all {left} lines")


def test_a_ledger_without_its_beginning_is_proven_from_the_tree_in_its_header(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "pruned")
    first = str(forge.ledger.epoch_key.verifier(forge.ledger.origin))
    forge.honest_stream()
    forge.ledger.begin_segment()
    stream = forge.honest_stream()
    forge.write()
    (forge.directory / "ledger.00000001.jsonl").unlink(missing_ok=True)
    forge.ledger.write_pruned(first)
    forge.streams[0].path().unlink()

    out = tmp_path / "pruned.zip"
    run(forge.directory, "--evidence", out)
    code, said = checked(out, "--key", first)

    assert (code, said.splitlines()[-1]) == (0, f"PROVEN: the key vouches for all {len(stream.lines)} lines")


@pytest.mark.parametrize("arguments", [(), ("--actor", "alice")], ids=["whole", "person"])
@pytest.mark.parametrize("kind", ["archive", "loki"])
def test_a_store_makes_the_evidence_of_its_journal(tmp_path: Path, kind: str, arguments: tuple[str, ...]) -> None:
    forge = Forge(tmp_path / "people", identity=SigningKey.generate())
    an_actor(forge, 10)
    forge.write()

    with Kept(kind, tmp_path).at(all_lines(forge)) as source:
        of_store = tmp_path / "store.zip"
        result = run(source, "--evidence", of_store, *arguments)
    assert result.exit_code == 0, result.output
    of_journal = evidence_of(forge.directory, *arguments)

    assert content_of(of_store).keys() == content_of(of_journal).keys()
    for name, content in content_of(of_journal).items():
        if name not in ("contents.json", "README.txt", "MANIFEST.sha256", "events.parquet"):
            assert content_of(of_store)[name] == content, name
    lines = len(lines_of(of_journal))
    code, said = checked(of_store, "--key", key_of(forge))
    assert (code, said.splitlines()[-1]) == (0, f"PROVEN: the key vouches for all {lines} lines")


def test_a_named_event_of_an_archive_gets_a_proof_of_its_own(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "people", identity=SigningKey.generate())
    an_actor(forge, 10)
    archive = write_archive(tmp_path / "archive.jsonl", all_lines(forge))

    evidence = evidence_of(archive, "--prove", "e-3")

    assert "e-3" in [each["event_id"] for each in contents_of(evidence)["proofs"]]
    refused = run(archive, "--evidence", tmp_path / "e.zip", "--prove", "e-99")
    assert refused.exit_code == 1
    assert "expected an event of the id 'e-99' in" in refused.output


def test_an_archive_without_the_ledger_makes_evidence_that_says_so(forge: Forge, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "archive.jsonl", [line for each in forge.streams for line in each.lines])

    evidence = evidence_of(archive)

    whys = [each["why"] for each in contents_of(evidence)["without_proof"]]
    assert len(whys) == len(forge.streams)
    assert all("has no signed ledger" in why for why in whys)
    code, said = checked(evidence, "--key", key_of(forge))
    assert code == 1
    assert said.splitlines()[-1] == f"NOT ALL PROVEN: the key vouches for 0 of {len(lines_of(evidence))} lines"


def test_a_trail_that_a_service_wrote_is_evidence(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with closing(AuditLogger(a_trail(directory, ledger="true"))) as audit:
        for name in ("alice", "bob"):
            audit.log_http_request(
                method="GET",
                path="/salaries",
                status_code=200,
                principal=AuditPrincipal(username=name),
                outcome="success",
            )
        audit.log_authn(outcome="failure", principal=AuditPrincipal(username="mallory"), detail="password=hunter2")

    evidence = evidence_of(directory, "--since", "1h")

    code, said = checked(evidence)
    assert (code, said.splitlines()[0]) == (0, "4 lines of 1 stream; 1 proof")
    assert all(b"hunter2" not in raw for raw in content_of(evidence).values())
    readme = content_of(evidence)["README.txt"].decode()
    assert "This file holds 3 events" in readme
    assert content_of(evidence)["keys.txt"].decode().strip() in readme
    assert max(map(len, readme.splitlines())) < 200


def test_no_name_can_put_lines_of_its_own_into_the_readme(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with recorder(directory) as audit:
        audit.log_authn(outcome="failure", principal=AuditPrincipal(username="x"))

    evidence = evidence_of(directory, "--actor", "x\nPROVEN by nobody\u202e")

    readme = content_of(evidence)["README.txt"].decode()
    assert "\nPROVEN" not in readme
    assert "\u202e" not in readme


def test_evidence_of_a_log_of_events_and_proofs_without_evidence_are_wrong_usage(forge: Forge, tmp_path: Path) -> None:
    log = tmp_path / "events.log"
    log.write_text('{"event_type":"http.request"}\n')

    of_log = run(log, "--evidence", tmp_path / "e.zip")
    alone = run(forge.directory, "--prove", "e-1", "--out", tmp_path / "r.html")

    assert (of_log.exit_code, alone.exit_code) == (2, 2)
    assert "expected a trail with a chain for --evidence, got a log of events" in of_log.output
    assert "--prove goes with --evidence FILE.zip" in alone.output


def test_times_before_and_behind_the_period_leave_their_lines_out(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "times", identity=SigningKey.generate())
    stream = forge.stream().log(2)
    forge.ledger.turn(("open", stream.opening()))
    for _ in range(4):
        stream.time_ns += 10 * 10**9
        stream.log(3)
    forge.ledger.turn(("end", stream.head()))
    forge.write()
    at = [f"{_iso(NOW_NS + seconds * 10**9)}" for seconds in (15, 35)]

    evidence = evidence_of(forge.directory, "--since", at[0], "--until", at[1])

    assert [json.loads(line)["seq"] for line in lines_of(evidence)] == [1, 7, 8, 9, 10, 11, 12]
    assert checked(evidence, "--key", key_of(forge))[0] == 0


def _iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 10**9, UTC).isoformat()
