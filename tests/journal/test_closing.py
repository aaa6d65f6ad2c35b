"""The end of a stream, called for at any moment."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

from tests.chain_check import application_events
from tests.journal.writing import a_journal, append

CLOSES = 200


def test_a_signal_handler_that_closes_inside_an_append_neither_waits_for_it_nor_breaks_it(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    closed = 0

    def close(number: int, frame: FrameType | None) -> None:
        nonlocal closed
        journal.close()
        closed += 1

    former = signal.signal(signal.SIGALRM, close)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0023)
    names: list[str] = []
    try:
        while closed < CLOSES:
            receipt = append(journal, len(names))
            assert receipt.durable
            names.append(str(len(names)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    journal.close()

    assert sorted(event["event_id"] for event in application_events(tmp_path)) == sorted(names)
