"""A process that is interrupted, again and again, somewhere inside an append.

Prints the events that were acknowledged on stdout, and how many were tried as the last word on stderr.
"""

from __future__ import annotations

import random
import signal
import sys
from pathlib import Path
from types import FrameType

from otel_audit.journal.stream import Limits
from otel_audit.settings import Durability
from tests.journal.writing import a_journal, append


def main(directory: Path, wanted: int, durability: Durability) -> None:
    journal = a_journal(directory, limits=Limits(segment_bytes=2_000_000), durability=durability)
    dice = random.Random(7)
    longest_s = 300e-6 if durability is Durability.OS else 4e-3  # about two appends
    acknowledged: list[int] = []
    interrupts = tried = 0

    def interrupt(signum: int, frame: FrameType | None) -> None:
        # Armed again by hand, so that the next one comes somewhere inside a later append.
        signal.setitimer(signal.ITIMER_REAL, dice.uniform(20e-6, longest_s))
        while frame is not None:
            if "/otel_audit/journal/" in frame.f_code.co_filename:
                raise KeyboardInterrupt
            frame = frame.f_back

    append(journal, tried)  # the stream is open before the first interrupt, as in a service that runs
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 50e-6)
    while interrupts < wanted or len(acknowledged) < wanted // 10:
        tried += 1
        try:
            receipt = append(journal, tried)
        except KeyboardInterrupt:
            interrupts += 1
            if len(acknowledged) < interrupts // 10:
                longest_s *= 1.05  # of a machine that is so busy that no append would come to its end
        else:
            if receipt.durable:
                acknowledged.append(tried)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    journal.close()
    print("\n".join(map(str, acknowledged)))
    print(tried, file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Durability(sys.argv[3]))
