"""Which ledger is continued, and which is left as it is, with a new one that names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from otel_audit.journal.ledger import standing
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.epochs import EpochKeys
from otel_audit.journal.ledger.standing import Reason
from tests.journal.ledger.telling import Clock, a_ledger, checked, segments

HEAD = (Kind.HEAD, {"stream": "s", "size": 3, "root": "r", "hash": "h"})


def cut_last_turn(directory: Path) -> None:
    path = segments(directory)[-1]
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(lines[:-3]) + b"\n")


def change_a_line(directory: Path) -> None:
    path = segments(directory)[-1]
    path.write_bytes(path.read_bytes().replace(b'"size":3', b'"size":4', 1))
    (directory / "ledger.edge").unlink()


def take_every_note(directory: Path) -> None:
    path = segments(directory)[-1]
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(b'{"system":"note"')))


def other_key(directory: Path) -> None:
    elsewhere = directory / "elsewhere"
    elsewhere.mkdir()
    a_ledger(elsewhere).tell([HEAD])
    shutil.copy(elsewhere / "ledger.key", directory / "ledger.key")
    shutil.rmtree(elsewhere)


CHANGES: dict[Reason, Callable[[Path], object]] = {
    Reason.KEY_MISSING: lambda directory: (directory / "ledger.key").unlink(),
    Reason.KEY_TORN: lambda directory: (directory / "ledger.key").write_bytes(b"\x07" * 8192),
    Reason.KEY_UNKNOWN: other_key,
    Reason.CUT: cut_last_turn,
    Reason.ROOT: change_a_line,
    Reason.NO_NOTE: take_every_note,
}


@pytest.mark.parametrize("reason", CHANGES, ids=lambda reason: reason.name.lower())
def test_a_ledger_that_cannot_be_trusted_is_left_as_it_is_and_named_by_a_new_one(
    tmp_path: Path, reason: Reason
) -> None:
    said: list[str] = []
    ledger = a_ledger(tmp_path)
    ledger.tell([HEAD])
    last = ledger.tell([HEAD]).checkpoint
    CHANGES[reason](tmp_path)
    (former,) = segments(tmp_path)
    left = former.read_bytes()

    after = a_ledger(tmp_path, say=lambda kind, text: said.append(text))
    after.tell([HEAD])
    after.tell([HEAD])

    assert former.read_bytes() == left
    assert len(segments(tmp_path)) == 2
    begin = a_begin(tmp_path)
    assert begin["reason"] == str(reason)
    assert begin["directory_id"] == last.origin.rpartition("/")[2]
    if reason not in (Reason.CUT, Reason.NO_NOTE):
        assert (begin["origin"], begin["size"]) == (last.origin, last.size)
    assert [str(reason) in text for text in said] == [True]


def a_begin(directory: Path) -> dict[str, object]:
    found = directory / "found"
    found.mkdir(exist_ok=True)
    shutil.copy(segments(directory)[-1], found)  # the former one may not pass the check
    (after,) = checked(found)
    assert after.kinds[0] == "begin"
    assert after.kinds.count("begin") == 1, "a new ledger began with every turn"
    former: dict[str, object] = after.entries[0]["former"]
    return former


def test_a_directory_that_came_from_another_host_begins_a_ledger_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_ledger(tmp_path).tell([HEAD])
    monkeypatch.setattr(standing, "host_id", lambda: "another")
    monkeypatch.setattr(standing, "boot_id", lambda: "another boot")

    a_ledger(tmp_path).tell([HEAD])

    first, second = checked(tmp_path)
    assert second.entries[0]["former"]["reason"] == str(Reason.OTHER_HOST)
    assert second.entries[0]["former"]["origin"] == first.notes[-1].origin


def test_containers_of_one_kernel_go_on_with_one_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_ledger(tmp_path).tell([HEAD])
    monkeypatch.setattr(standing, "host_id", lambda: "the name of another container")

    a_ledger(tmp_path).tell([HEAD])

    assert len(checked(tmp_path)) == 1


def test_a_directory_restored_without_its_key_begins_a_ledger_of_its_own(tmp_path: Path) -> None:
    live, backup = tmp_path / "live", tmp_path / "backup"
    live.mkdir()
    a_ledger(live).tell([HEAD])
    shutil.copytree(live, backup, ignore=shutil.ignore_patterns("ledger.key"))
    a_ledger(live).tell([HEAD])
    shutil.rmtree(live)
    backup.rename(live)

    a_ledger(live).tell([HEAD])

    _, second = checked(live)
    assert second.entries[0]["former"]["reason"] == str(Reason.KEY_MISSING)


def test_a_directory_rolled_back_as_a_whole_goes_on_unseen(tmp_path: Path) -> None:
    """Found with an archive, a store or a witness alone: docs say so. Nothing in the directory can know it."""
    live, snapshot = tmp_path / "live", tmp_path / "snapshot"
    live.mkdir()
    a_ledger(live).tell([HEAD])
    shutil.copytree(live, snapshot)
    lost = a_ledger(live).tell([HEAD]).checkpoint

    again = a_ledger(snapshot).tell([HEAD]).checkpoint

    assert len(checked(snapshot)) == 1
    assert (again.origin, again.size) == (lost.origin, lost.size)
    assert again.root != lost.root


def test_two_clones_that_go_on_are_one_ledger_each_for_itself(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    a_ledger(one).tell([HEAD])
    shutil.copytree(one, two)

    first, second = a_ledger(one).tell([HEAD]).checkpoint, a_ledger(two).tell([HEAD]).checkpoint

    assert (first.origin, first.size) == (second.origin, second.size)
    assert first.root != second.root, "whoever has seen one of them finds the other"


def test_a_new_ledger_keeps_the_keys_of_the_former_one_in_the_archive(tmp_path: Path) -> None:
    clock = Clock()
    a_ledger(tmp_path, clock=clock).tell([HEAD])
    clock.pass_s(3601)
    a_ledger(tmp_path, clock=clock).tell([HEAD])
    (tmp_path / "ledger.key").unlink()

    a_ledger(tmp_path, clock=clock).tell([HEAD])

    first, second = checked(tmp_path)
    records = list(EpochKeys.read(tmp_path))
    assert [str(record.vkey) for record in records] == [*first.keys, *second.keys]
    assert [record.number for record in records] == [1, 2, 1]
    for record in records:
        record.announced()
