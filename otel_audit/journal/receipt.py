"""What a journal tells of the events that it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Receipt", "Written"]


class Receipt(NamedTuple):
    """What is known of a recorded event when `log()` returns.

    `event_id` is None where the sink gives events no id. `stream_id` and `seq` (its number in the stream) are None
    while the line has no place yet. `durable`: the line survives what the durability setting says; never in memory.
    """

    event_id: str | None
    stream_id: str | None
    seq: int | None
    durable: bool


@dataclass(frozen=True, slots=True)
class Written:
    """Events of the application that this process handed to the journal.

    `dropped` were not written. `gone` were written, and somebody took them away before any exporter had them.
    """

    emitted: int
    dropped: int
    by_reason: Mapping[str, int] = field(default_factory=dict)
    gone: int = 0
