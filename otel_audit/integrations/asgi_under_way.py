"""The requests and connections of one application that are under way, for which its logger stays open."""

from __future__ import annotations

import asyncio
import time
from typing import Final

__all__ = ["UnderWay"]

_POLL_S: Final = 0.005
_WAIT_S: Final = 5.0  # for the disk; what is asked to end has ended by then


class UnderWay:
    """Those without an end in the trail. Any thread."""

    __slots__ = ("_recordings",)

    def __init__(self) -> None:
        self._recordings: set[object] = set()

    def begins(self, recording: object) -> None:
        """It has no end yet."""
        self._recordings.add(recording)

    def ends(self, recording: object) -> None:
        """Its end is in the trail, or nothing of it will be."""
        self._recordings.discard(recording)

    async def over(self) -> None:
        """All of them have ended, or some seconds are over.

        A server that may wait no longer cancels what is under way, and asks the application to end in the same breath:
        a logger that closes then would miss them.
        """
        if asyncio._get_running_loop() is None:
            return
        deadline = time.monotonic() + _WAIT_S
        while self._recordings and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
