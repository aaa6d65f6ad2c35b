"""The truth: what each writer meant to log, and what it was told, kept apart from everything that is under test.

One file for each start of a writer, on a disk that is never filled. Every line is a single write to a file that is
only appended to, so that a SIGKILL between two calls loses nothing that was written before it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["FORKED", "NO_PLACE", "Ledger", "LedgerFile", "Place", "child_of", "instance_of", "is_child", "read_ledger"]

_INTENDED, _ACKNOWLEDGED, _REFUSED = "i", "a", "r"
_SUFFIX: Final = ".ledger"
_CHILD: Final = "+"

FORKED: Final = "forked children"  # all of them together: a child has a service.instance.id that only it knows


class Place(NamedTuple):
    """What a receipt said of an event."""

    event_id: str
    stream_id: str
    seq: int


NO_PLACE: Final = Place("-", "-", 0)  # acknowledged by a call that returned, and says no more


class LedgerFile:
    """The ledger of one process. Any thread."""

    def __init__(self, directory: Path, instance: str) -> None:
        path = directory / f"{instance}{_SUFFIX}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def intend(self, name: str) -> None:
        """The event of this name is going to be logged."""
        self._write(_INTENDED, name)

    def acknowledge(self, name: str, place: Place) -> None:
        """It was logged, and is promised to arrive."""
        self._write(_ACKNOWLEDGED, name, place.event_id, place.stream_id, str(place.seq))

    def refuse(self, name: str) -> None:
        """The call returned, and said that the event is not durable."""
        self._write(_REFUSED, name)

    def _write(self, *words: str) -> None:
        line = " ".join(words).encode() + b"\n"
        if os.write(self._descriptor, line) != len(line):
            raise OSError(f"expected to write {len(line)} bytes to the ledger at once, got fewer: is its disk full?")


@dataclass(slots=True)
class Ledger:
    """All files together. `instances`: the processes that kept one."""

    intended: set[str] = field(default_factory=set)
    acknowledged: dict[str, Place] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    instances: set[str] = field(default_factory=set)

    @property
    def unanswered(self) -> set[str]:
        """Events whose call never returned, since the process was killed in it: they may arrive, or not."""
        return self.intended - self.acknowledged.keys() - self.refused


def child_of(instance: str, number: int) -> str:
    """The name of a forked child."""
    return f"{instance}{_CHILD}{number}"


def is_child(instance: str) -> bool:
    """Whether a process of this name was forked by a writer."""
    return _CHILD in instance


def instance_of(name: str) -> str:
    """The process that logged the event of this name; `FORKED` for any forked child."""
    instance = name.partition(".")[0]
    return FORKED if is_child(instance) else instance


def read_ledger(directory: Path) -> Ledger:
    """What all the processes noted."""
    ledger = Ledger()
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        ledger.instances.add(path.stem)
        for words in _lines(path):
            match words:
                case [kind, name] if kind == _INTENDED:
                    ledger.intended.add(name)
                case [kind, name, event_id, stream_id, seq] if kind == _ACKNOWLEDGED:
                    ledger.acknowledged[name] = Place(event_id, stream_id, int(seq))
                case [kind, name] if kind == _REFUSED:
                    ledger.refused.add(name)
                case _:
                    raise ValueError(f"{path}: expected a line of the ledger, got {words}")
    return ledger


def _lines(path: Path) -> Iterator[list[str]]:
    *whole, _ = path.read_text().split("\n")  # a piece behind the last newline was cut off by the kill
    return (line.split(" ") for line in whole)
