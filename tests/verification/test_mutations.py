"""Edits by chance: each one at or below the last signed line is found, and an untouched directory has none.

Two hundred of them; ten thousand with OTEL_AUDIT_TESTS_LONG=1. Each is made of its seed alone, which a failure names.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_audit.signing.keys import SigningKey
from otel_audit.signing.note import Checkpoint
from otel_audit.verification.findings import Verdict
from otel_audit.verification.pins import KnownNote, Pins
from otel_audit.verification.verify import verify_directory
from tests.long_form import LONG
from tests.verification.forge import Forge

SEEDS = range(10_000 if LONG else 200)
A_GROUP = 50
KEY = re.compile(rb'"([a-z_]+)":')

Mutation = Callable[[random.Random, Path, list[Path]], None]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def flip_a_bit(chance: random.Random, path: Path, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def change_bytes(chance: random.Random, path: Path, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    begin = chance.randrange(len(data))
    data[begin : begin + chance.randrange(1, 9)] = chance.randbytes(chance.randrange(9)) or b"x"
    path.write_bytes(data)


def delete_lines(chance: random.Random, path: Path, _: list[Path]) -> None:
    lines = lines_of(path)
    begin = chance.randrange(len(lines))
    del lines[begin : begin + chance.randrange(1, 4)]
    path.write_bytes(b"".join(lines))


def repeat_a_line(chance: random.Random, path: Path, _: list[Path]) -> None:
    lines = lines_of(path)
    lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    path.write_bytes(b"".join(lines))


def swap_lines(chance: random.Random, path: Path, _: list[Path]) -> None:
    lines = lines_of(path)
    one, other = chance.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    path.write_bytes(b"".join(lines))


def cut_off(chance: random.Random, path: Path, _: list[Path]) -> None:
    path.write_bytes(path.read_bytes()[: -chance.randrange(1, path.stat().st_size)])


def cut_lines_off(chance: random.Random, path: Path, _: list[Path]) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join(lines[: chance.randrange(len(lines))]))


def put_a_hole(chance: random.Random, path: Path, _: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    begin = chance.randrange(len(data))
    data[begin : begin + 100] = bytes(len(data[begin : begin + 100]))
    path.write_bytes(data)


def delete_a_file(chance: random.Random, path: Path, _: list[Path]) -> None:
    path.unlink()


def swap_files(chance: random.Random, path: Path, others: list[Path]) -> None:
    other = chance.choice([each for each in others if each != path])
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def copy_a_line_of_another_file(chance: random.Random, path: Path, others: list[Path]) -> None:
    lines = lines_of(path)
    other = chance.choice([each for each in others if each != path])
    lines.insert(chance.randrange(len(lines)), chance.choice(lines_of(other)))
    path.write_bytes(b"".join(lines))


def put_the_lines_in_order_of_chance(chance: random.Random, path: Path, _: list[Path]) -> None:
    lines = lines_of(path)
    before = list(lines)
    while lines == before:
        chance.shuffle(lines)
    path.write_bytes(b"".join(lines))


def rename_a_key(chance: random.Random, path: Path, _: list[Path]) -> None:
    data = path.read_bytes()
    keys = [match.start(1) for match in KEY.finditer(data)]
    at = chance.choice(keys)
    path.write_bytes(data[:at] + b"x" + data[at + 1 :])


def put_a_key_twice(chance: random.Random, path: Path, _: list[Path]) -> None:
    lines = lines_of(path)
    at = chance.randrange(len(lines))
    key = chance.choice([match[1] for match in KEY.finditer(lines[at])])
    lines[at] = b'{"%b":"another",' % key + lines[at][1:]
    path.write_bytes(b"".join(lines))


def end_a_line_as_other_systems_do(chance: random.Random, path: Path, _: list[Path]) -> None:
    lines = lines_of(path)
    at = chance.randrange(len(lines))
    lines[at] = lines[at][:-1] + b"\r\n"
    path.write_bytes(b"".join(lines))


MUTATIONS: list[Mutation] = [
    flip_a_bit,
    change_bytes,
    delete_lines,
    repeat_a_line,
    swap_lines,
    cut_off,
    cut_lines_off,
    put_a_hole,
    delete_a_file,
    swap_files,
    copy_a_line_of_another_file,
    put_the_lines_in_order_of_chance,
    rename_a_key,
    put_a_key_twice,
    end_a_line_as_other_systems_do,
]


def signed_part(files: dict[Path, bytes]) -> dict[str, bytes | tuple[bytes, bytes]]:
    """What is signed of the files: all but the keys behind the text of the last note, which stand under no note yet."""
    found: dict[str, bytes | tuple[bytes, bytes]] = {}
    for path, content in files.items():
        before, _, note = content.rpartition(b'{"system":"note","event_type":"audit.note",')
        is_ledger = path.name.startswith("ledger.") and note.endswith(b"}\n") and note.count(b"\n") == 1
        found[path.name] = (before, note.partition(b',"time_ns":')[0]) if is_ledger else content
    return found


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pins]:
    """A trail of which every line is signed, and its last note."""
    directory = tmp_path_factory.mktemp("untouched") / "journal"
    forge = Forge(directory, identity=SigningKey.generate())
    for number in range(3):
        forge.honest_stream(segments=number + 1)
        forge.ledger.next_epoch()
    forge.write()
    note = forge.ledger.notes[-1]
    return directory, Pins(known_note=KnownNote(note, Checkpoint.parse(note.text)))


@pytest.mark.parametrize("group", range(0, len(SEEDS), A_GROUP))
@pytest.mark.slow
def test_every_edit_of_signed_lines_is_found(untouched: tuple[Path, Pins], tmp_path: Path, group: int) -> None:
    directory, pins = untouched
    missed = []
    for seed in SEEDS[group : group + A_GROUP]:
        chance = random.Random(seed)
        copy = tmp_path / str(seed)
        shutil.copytree(directory, copy)
        files = sorted(copy.glob("*.jsonl"))
        path, mutation = chance.choice(files), chance.choice(MUTATIONS)
        before = {each: each.read_bytes() for each in files}
        mutation(chance, path, files)
        after = {each: each.read_bytes() for each in copy.glob("*.jsonl")}
        if signed_part(after) != signed_part(before) and verify_directory(copy, pins).verdict is not Verdict.BROKEN:
            missed.append((seed, path.name, mutation.__name__))
        shutil.rmtree(copy)

    assert missed == []


def test_nothing_is_found_in_an_untouched_directory(untouched: tuple[Path, Pins]) -> None:
    directory, pins = untouched

    report = verify_directory(directory, pins)

    assert (report.verdict, report.all_findings) == (Verdict.PROVEN, [])
