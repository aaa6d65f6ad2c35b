"""How much work the screen does, without a clock: the bytes that RE2 reads, and the calls that Python makes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import re2

__all__ = ["Work", "work_of"]

_SET_MATCH = re2.Set.Match.__code__
_SEARCH = re2._Regexp._match.__code__


@dataclass(slots=True)
class Work:
    """`screened_bytes`: of every set and pattern, each time it reads. `calls`: of functions, those in C included."""

    screened_bytes: int = 0
    calls: int = 0


def work_of(call: Callable[[], object]) -> Work:
    """Return what the call takes. The numbers are the same on every machine."""
    work = Work()

    def count(frame: FrameType, event: str, result: Any) -> None:
        work.calls += event in ("call", "c_call")
        if event == "return" and frame.f_code is _SET_MATCH:
            work.screened_bytes += len(frame.f_locals["text"])
        elif event == "return" and frame.f_code is _SEARCH:
            start, end = frame.f_locals["pos"], frame.f_locals["endpos"]
            work.screened_bytes += (end if result is None else result.end()) - start

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    return work
