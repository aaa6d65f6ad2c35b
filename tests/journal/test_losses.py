"""Losses are counted at any step, and told once each."""

from __future__ import annotations

import dis
import sys
from types import FrameType
from typing import Any

import pytest

from otel_audit.journal.room import Losses


@pytest.mark.parametrize("turn", range(9))
def test_what_a_signal_handler_loses_while_a_gap_is_told_waits_for_the_next_one(turn: int) -> None:
    losses = Losses()
    losses.add("disk full", 1)
    losses.add("directory limit", 2)
    left = turn

    def add_at_that_turn(frame: FrameType, event: str, arg: Any) -> Any:
        """At the end of one turn of a loop, where Python looks for signals."""
        nonlocal left
        if frame.f_code.co_filename != sys.modules[Losses.__module__].__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and "JUMP_BACKWARD" in dis.opname[frame.f_code.co_code[frame.f_lasti]]:
            if left == 0:
                sys.settrace(None)
                losses.add("re-entry", 3)
            left -= 1
        return add_at_that_turn

    before = sys.gettrace()
    sys.settrace(add_at_that_turn)
    try:
        first = losses.untold()
        losses.told(first)
    finally:
        sys.settrace(before)
    second = losses.untold()
    losses.told(second)

    assert first["lines"] + second["lines"] == sum(losses.total.values())
    assert not losses


def test_a_reason_that_comes_again_is_told_from_its_new_beginning() -> None:
    losses = Losses()
    losses.add("disk full", 1)
    losses.told(losses.untold())

    losses.add("disk full", 5)

    assert losses.untold()["by_reason"] == {"disk full": {"count": 1, "first_ns": 5, "last_ns": 5}}
