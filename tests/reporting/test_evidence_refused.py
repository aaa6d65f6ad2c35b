"""Evidence that was changed is refused at the place of the change, whoever changed it and what they know."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from otel_audit.signing.keys import SigningKey
from tests.reporting.evidence_files import (
    LOG,
    MANIFEST,
    Change,
    a_signed_trail,
    changed,
    checked,
    content_of,
    evidence_of,
    evidence_of_broken,
    key_of,
)
from tests.verification.forge import Forge, with_tail

pytestmark = pytest.mark.processes


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return a_signed_trail(tmp_path / "signed")


def replace_line(content: dict[str, bytes], name: str, number: int, change: Callable[[bytes], bytes]) -> None:
    lines = content[name].split(b"\n")
    lines[number - 1] = change(lines[number - 1])
    content[name] = b"\n".join(lines)


def without_line(content: dict[str, bytes], number: int) -> None:
    lines = content["events.jsonl"].split(b"\n")
    del lines[number - 1]
    content["events.jsonl"] = b"\n".join(lines)


def swap(content: dict[str, bytes]) -> None:
    one, other = sorted(name for name in content if name.startswith("proofs/"))
    content[one], content[other] = content[other], content[one]


def one_byte_of_a_line(content: dict[str, bytes]) -> None:
    replace_line(content, "events.jsonl", 7, lambda line: line.replace(b"order 6", b"order 9"))


CHANGES: Mapping[str, tuple[Change, str]] = {
    "one byte of a line": (one_byte_of_a_line, "events.jsonl, line 8: line 8 of the stream "),
    "the last line": (
        lambda content: replace_line(content, "events.jsonl", 67, lambda line: line.replace(b"order", b"ordre")),
        "events.jsonl, line 67: line 23 of the stream ",
    ),
    "a removed line": (lambda content: without_line(content, 12), "events.jsonl, line 12: expected line 12 of the "),
    "the last line removed": (lambda content: without_line(content, 67), "events.jsonl, at its end: expected line 23 "),
    "lines of the ledger": (
        lambda content: replace_line(content, "ledger.jsonl", 4, lambda line: line.replace(b'"shop"', b'"shoq"')),
        "ledger.jsonl, line 5: line 5 of the stream ",
    ),
    "swapped proofs": (swap, "tlog-proof: expected the proof of that line, got one of line "),
    "no events": (lambda content: content.pop("events.jsonl"), "events.jsonl: expected this file, got none"),
    "ranges too deep": (
        lambda content: content.update({"contents.json": b"[" * 100_000}),
        "contents.json: expected the ranges of lines",
    ),
    "half a range": (
        lambda content: content.update({"contents.json": b'{"lines": [1]}'}),
        "contents.json: expected the ranges of lines",
    ),
    "keys in other bytes": (lambda content: content.update({"keys.txt": b"\xff"}), "keys.txt: expected UTF-8"),
    "a file outside": (
        lambda content: content.update({"../../.profile": b"sh"}),
        "../../.profile: expected a name inside of the evidence, got another",
    ),
    "a file that nothing checks": (
        lambda content: content.update({"SUMMARY.txt": b"Nothing was denied."}),
        "SUMMARY.txt: expected a file of evidence, got another, which nothing here checks",
    ),
    "a name in other letters": (
        lambda content: content.update({"Events.jsonl": b""}),
        "Events.jsonl: expected a file of evidence, got another, which nothing here checks",
    ),
    "a file outside, on Windows": (
        lambda content: content.update({"C:\\run.bat": b""}),
        "run.bat: expected a name inside of the evidence, got another",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("with_key", [True, False], ids=["with a key", "without a key"])
def test_a_change_is_refused_at_its_place_also_when_the_list_of_files_hides_it(
    forge: Forge, what: str, with_key: bool
) -> None:
    change, where = CHANGES[what]
    evidence = changed(evidence_of(forge.directory), change)

    code, said = checked(evidence, *(("--key", key_of(forge)) if with_key else ()))

    assert code == 1
    assert where in said, said
    assert all(line.startswith("REFUSED: ") for line in said.splitlines())


def test_the_list_of_files_names_the_file_that_was_changed_added_or_is_missing(forge: Forge) -> None:
    evidence = evidence_of(forge.directory)

    def change(content: dict[str, bytes]) -> None:
        content["README.txt"] += b"and believe me"
        content["extra.txt"] = b""
        del content["events.parquet"]

    code, said = checked(changed(evidence, change, hidden=False))

    assert code == 1
    assert "REFUSED: README.txt: expected SHA-256 " in said
    assert f"REFUSED: extra.txt: expected a file that {MANIFEST} lists, got another" in said
    assert f"REFUSED: events.parquet: expected this file, which {MANIFEST} lists, got none" in said


def test_a_file_that_stands_in_it_twice_is_refused(forge: Forge) -> None:
    evidence = evidence_of(forge.directory)
    with ZipFile(evidence, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("events.jsonl", content_of(evidence)["events.jsonl"])

    code, said = checked(evidence, "--key", key_of(forge))

    assert code == 1
    assert "REFUSED: events.jsonl: expected a file once, got it twice" in said


def test_notes_and_proofs_of_another_log_are_refused(forge: Forge, tmp_path: Path) -> None:
    other = Forge(tmp_path / "other", identity=forge.identity)
    other.ledger.ledger_id = other.ledger.ledger_id[:-1] + "f"
    other.ledger.origin = f"{LOG}/{other.ledger.ledger_id}"
    other.ledger.lines.clear()
    other.ledger.begin()
    other.honest_stream(segments=2)
    others = content_of(evidence_of(other.write().directory))

    def change(content: dict[str, bytes]) -> None:
        for folder in ("notes/", "proofs/"):
            mine, theirs = (min(name for name in each if name.startswith(folder)) for each in (content, others))
            content[mine] = others[theirs]

    code, said = checked(changed(evidence_of(forge.directory), change), "--key", key_of(forge))

    assert code == 1
    assert f".note: expected a note of its log, got one of {other.ledger.origin}" in said
    assert f".tlog-proof: expected a proof of a log in ledger.jsonl, got one of {other.ledger.origin}" in said


def test_a_trail_that_was_forged_anew_is_not_proven_by_the_key_from_elsewhere(forge: Forge, tmp_path: Path) -> None:
    forged = Forge(tmp_path / "forged", identity=SigningKey.generate())
    forged.honest_stream(segments=2)
    evidence = evidence_of(forged.write().directory)

    assert checked(evidence)[0] == 0
    code, said = checked(evidence, "--key", key_of(forge))

    assert code == 1
    assert said.splitlines()[-1] == "NOT ALL PROVEN: the key vouches for 0 of 44 lines"


def test_a_note_with_the_signature_of_another_text_is_refused(forge: Forge) -> None:
    """A ledger that was rewritten by somebody without the key, who keeps its old signatures."""
    size = len(forge.ledger.lines)
    forge.ledger.identity = None
    signatures = forge.ledger.notes[-1].signatures
    forge.ledger.turn(("head", forge.streams[0].head()))
    body = json.loads(forge.ledger.lines.pop())
    text = body["note"]["text"].partition("\n\n")[0]
    body = {
        "system": "note",
        "event_type": "audit.note",
        "note": {"text": f"{text}\n\n{''.join(map(_line, signatures))}"},
    }
    forge.ledger.lines.append(
        with_tail(body, forge.ledger.ledger_id, size + 2, forge.ledger.lines[-1], forge.ledger.time_ns)
    )
    evidence = evidence_of_broken(forge.write().directory)

    code, said = checked(evidence, "--key", key_of(forge))

    assert code == 1
    assert f"note of {size + 1} lines: note: expected a valid signature of the key" in said


def _line(signature: object) -> str:
    return f"{signature}\n"


def test_a_trail_that_is_broken_makes_evidence_that_is_refused(forge: Forge) -> None:
    stream = forge.streams[1]
    stream.write_segment(1, [line.replace(b"order 5", b"order 6") for line in stream.lines])

    code, said = checked(evidence_of_broken(forge.directory), "--key", key_of(forge))

    assert code == 1
    assert f"line 7 of the stream {stream.stream_id}: expected the hash of the line before it" in said


def test_hostile_files_are_refused_without_a_traceback(forge: Forge, tmp_path: Path) -> None:
    checker = Path(__file__).parents[2] / "verifiers" / "python" / "verify_evidence.py"
    torn = tmp_path / "torn.zip"
    torn.write_bytes(evidence_of(forge.directory).read_bytes()[:-200])

    for path in (torn, tmp_path / "missing.zip"):
        code, said = checked(path, program=checker)
        assert code == 1
        assert said.startswith("REFUSED: ")


def test_a_damaged_byte_of_the_file_is_refused_by_name(forge: Forge) -> None:
    evidence = evidence_of(forge.directory)
    with ZipFile(evidence) as archive:
        about = archive.getinfo("events.jsonl")
    # Where its content begins: behind a header of 30 bytes, the name, and the field of 64-bit sizes.
    begin = about.header_offset + 30 + len(about.filename) + 20
    raw = bytearray(evidence.read_bytes())
    raw[begin : begin + 8] = b"\xff" * 8
    evidence.write_bytes(raw)

    code, said = checked(evidence, "--key", key_of(forge))

    assert code == 1
    assert "REFUSED: events.jsonl: expected a file that can be read, got error: Error -3" in said


def test_a_file_of_padding_is_refused_and_not_read(forge: Forge) -> None:
    evidence, path = evidence_of(forge.directory), forge.directory.parent / "padded.zip"
    with ZipFile(evidence) as archive, ZipFile(path, "w", ZIP_DEFLATED) as padded:
        for name in archive.namelist():
            padded.writestr(name, archive.read(name) if name != "events.jsonl" else bytes(64 << 20))
    assert path.stat().st_size < 1 << 20

    code, said = checked(path, "--key", key_of(forge))

    assert code == 1
    assert "events.jsonl: expected a file that compresses to more than one part in 200, got padding\n" in said


def test_a_folder_with_a_link_or_a_pipe_in_it_is_refused_and_not_waited_for(forge: Forge, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    with ZipFile(evidence_of(forge.directory)) as archive:
        archive.extractall(folder)
    (folder / "keys.txt").unlink()
    (folder / "keys.txt").symlink_to("/dev/zero")
    (folder / "more").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")

    code, said = checked(folder, "--key", key_of(forge))

    assert code == 1
    for name in ("keys.txt", "more", "pipe"):
        assert f"REFUSED: {name}: expected a file that can be read, got OSError: no regular file" in said


def test_the_ranges_of_a_million_pieces_are_read(forge: Forge) -> None:
    def pad(content: dict[str, bytes]) -> None:
        content["contents.json"] = b" " * (40 << 20) + content["contents.json"]

    code, said = checked(changed(evidence_of(forge.directory), pad), "--key", key_of(forge))

    assert (code, said.splitlines()[-1]) == (0, "PROVEN: the key vouches for all 67 lines")
