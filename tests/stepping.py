"""An asynchronous exception at a step of one's choice, of those at which Python may raise one."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["Interrupt", "Step", "interrupted"]


class Interrupt(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


@dataclass
class Step:
    """Where an operation was interrupted: at the first step of a function, or after a call of C code."""

    function: str
    called: str

    @property
    def lost_a_descriptor(self) -> bool:
        """The kernel had given a descriptor, and nothing in Python had it yet."""
        return self.called in {"open", "dup"}


def interrupted(do: Callable[[], object], at: int) -> Step | None:
    """Do it, and raise at this step; where that was, None if there are not so many."""
    found: list[Step] = []
    steps = itertools.count(1)

    def look(frame: FrameType, event: str, arg: Any) -> None:
        if event not in {"call", "c_return"} or frame.f_code.co_filename == __file__:
            return
        if next(steps) == at:
            sys.setprofile(None)
            found.append(Step(frame.f_code.co_name, arg.__name__ if event == "c_return" else ""))
            raise Interrupt

    sys.setprofile(look)
    try:
        do()
    except Interrupt:
        pass
    finally:
        sys.setprofile(None)
    return found[0] if found else None
