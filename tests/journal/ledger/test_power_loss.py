"""Power that is lost at any step of a turn, or of a change of the key, costs nothing that was acknowledged.

Every step, and every subset of what was not synced at it, torn writes as well: the next process goes on with the same
ledger, every size is signed once, and no other key is left on the disk than the one in force.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from otel_audit.journal.ledger.draft import Telling
from otel_audit.journal.ledger.entries import Kind
from otel_audit.journal.ledger.epochs import EpochKeys
from otel_audit.journal.ledger.ledger import Ledger
from otel_audit.signing.note import Checkpoint
from tests.journal.ledger.power import Killed, Recorder, State, states_after
from tests.journal.ledger.telling import Clock, a_ledger, checked

Done = list[tuple[int, int, Checkpoint]]  # behind how many steps, which entry, under which note

HOUR_S = 3601
_KEY_SLOT = 4096
_SEGMENT = 6000


def said(number: int) -> Telling:
    return Kind.RETAIN, {"number": number}


def put(directory: Path, state: State) -> Path:
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    for name, content in state.items():
        (directory / name).write_bytes(content)
    return directory


def told(directory: Path) -> list[int]:
    return [entry["number"] for each in checked(directory) for entry in each.told("retain")]


def check_goes_on(directory: Path, acknowledged: Sequence[tuple[int, Checkpoint]], clock: Clock) -> None:
    """The next process writes one entry more, behind all that was acknowledged, and all of it can be checked."""
    a_ledger(directory, clock=clock, segment_bytes=_SEGMENT).tell([said(99)])

    ledgers = checked(directory)
    found = ledgers[-1]
    numbers = told(directory)
    assert len(ledgers) == 1, [
        each.entries[0]["former"]["reason"] if each.entries[0]["former"] else None for each in ledgers
    ]
    assert numbers[-1] == 99
    assert found.unsigned == 0
    assert [number for number, _ in acknowledged] == [each for each in numbers if each in dict(acknowledged)]
    for _, checkpoint in acknowledged:
        assert checkpoint in found.notes
    assert len({note.size for note in found.notes}) == len(found.notes)
    # The archive leads from the first key to the one in force, and no other private key is left.
    records = list(EpochKeys.read(directory))
    assert [str(record.vkey) for record in records] == found.keys
    for record, signer in zip(records, [records[0], *records], strict=False):
        record.announced()
        record.note.verified([signer.vkey])
    slots = (directory / "ledger.key").read_bytes()
    assert sorted(bool(slots[at : at + _KEY_SLOT].strip(b"\0")) for at in (0, _KEY_SLOT)) == [False, True]


def run(ledger: Ledger, clock: Clock, upto: int, recorder: Recorder) -> Done:
    """Four turns: the ledger begins, a turn like others, the key changes, the segment is full and the key changes.

    Returns what each has acknowledged, and behind how many steps.
    """
    done = []
    for number in range(upto):
        if number >= 2:
            clock.pass_s(HOUR_S)
        checkpoint = ledger.tell([said(number)]).checkpoint
        done.append((len(recorder.steps), number, checkpoint))
    return done


def recorded(tmp_path: Path, work: Callable[[Recorder], Done]) -> tuple[Recorder, Done]:
    directory = tmp_path / "recorded"
    directory.mkdir()
    recorder = Recorder(directory)
    with pytest.MonkeyPatch.context() as patch:
        recorder.patched(patch)
        done = work(recorder)
    return recorder, done


@pytest.mark.slow
def test_power_lost_at_any_step_of_a_turn_or_a_change_of_the_key_loses_nothing(memory_disk: Path) -> None:
    clock = Clock()
    recorder, done = recorded(
        memory_disk,
        lambda recorder: run(a_ledger(recorder.directory, clock=clock, segment_bytes=_SEGMENT), clock, 4, recorder),
    )
    assert len(list((memory_disk / "recorded").glob("ledger.0*.jsonl"))) == 2, "no segment was full"
    seen = set()

    for steps, state in states_after(recorder.steps):
        acknowledged = [(number, checkpoint) for after, number, checkpoint in done if after <= steps]
        key = (len(acknowledged), *sorted(state.items()))
        if key not in seen:
            seen.add(key)
            check_goes_on(put(memory_disk / "left", state), acknowledged, Clock(clock.now_ns))

    assert len(seen) > 200


@pytest.mark.slow
def test_a_process_killed_at_any_step_and_power_lost_in_the_next_turn_lose_nothing(memory_disk: Path) -> None:
    clock = Clock()
    total = len(
        recorded(
            memory_disk,
            lambda recorder: run(a_ledger(recorder.directory, clock=clock, segment_bytes=_SEGMENT), clock, 4, recorder),
        )[0].steps
    )
    seen = set()
    for kill_at in range(0, total, 3):
        put(memory_disk / "recorded", {}).rmdir()
        clock = Clock()

        def killed_and_next(recorder: Recorder, kill_at: int = kill_at, clock: Clock = clock) -> Done:
            recorder.kill_at = kill_at
            done: Done = []
            ledger = a_ledger(recorder.directory, clock=clock, segment_bytes=_SEGMENT)
            for number in range(4):
                clock.pass_s(HOUR_S if number >= 2 else 0)
                try:
                    done.append((0, number, ledger.tell([said(number)]).checkpoint))
                except Killed:
                    break
                done[-1] = (len(recorder.steps), *done[-1][1:])
            recorder.kill_at = -1
            checkpoint = a_ledger(recorder.directory, clock=clock, segment_bytes=_SEGMENT).tell([said(50)]).checkpoint
            return [*done, (len(recorder.steps), 50, checkpoint)]

        recorder, done = recorded(memory_disk, killed_and_next)
        for steps, state in states_after(recorder.steps, exhaustive=False):
            if steps <= kill_at:
                continue
            acknowledged = [(number, checkpoint) for after, number, checkpoint in done if after <= steps]
            key = (len(acknowledged), *sorted(state.items()))
            if key not in seen:
                seen.add(key)
                check_goes_on(put(memory_disk / "left", state), acknowledged, Clock(clock.now_ns))
    assert len(seen) > 200


def test_of_a_key_that_was_changed_no_byte_is_left_in_the_directory(tmp_path: Path) -> None:
    clock = Clock()
    ledger = a_ledger(tmp_path, clock=clock)
    ledger.tell([said(0)])
    before = (tmp_path / "ledger.key").read_bytes()
    clock.pass_s(HOUR_S)

    ledger.tell([said(1)])

    seed = before[16 + 32 : 16 + 64]
    assert seed.strip(b"\0")
    for path in tmp_path.iterdir():
        assert seed not in path.read_bytes(), path
    assert os.stat(tmp_path / "ledger.key").st_size == 2 * _KEY_SLOT
