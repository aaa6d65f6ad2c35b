"""A process that logs from several threads and keeps the ledger, until its standard input ends.

Usage: `python -m tests.chaos.writer CONTENDER INSTANCE LEDGERS SEED`. Everything else is in the environment.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Final

from otel_audit.errors import JournalUnwritable
from tests.chaos.contenders import CONTENDERS, Contender, ContenderName
from tests.chaos.ledger import LedgerFile, child_of

__all__ = ["NO_JOURNAL"]

NO_JOURNAL: Final = 75  # exit code: the logger could not start, as on a disk that is full

_FAULT: Final = 70
_CHILD_MAX_S: Final = 45
_THREADS: Final = 3
_EVENTS_MAX: Final = 50_000  # of a thread: a writer that nobody stops ends by itself
_PAUSE_MAX_S: Final = 0.15
_BURST: Final = 60


def _log(contender: Contender, ledger: LedgerFile, thread: str, draw: random.Random, stop: threading.Event) -> None:
    number = 0
    try:
        while number < _EVENTS_MAX and not stop.wait(draw.uniform(0, _PAUSE_MAX_S)):
            for _ in range(_BURST if draw.random() < 0.01 else 1):
                number += 1
                _log_one(contender, ledger, f"{thread}.{number}", draw)
    except BaseException:  # a thread that only ended would be overlooked, and the next kill would bury it
        traceback.print_exc()
        os._exit(_FAULT)


def _log_one(contender: Contender, ledger: LedgerFile, name: str, draw: random.Random) -> None:
    ledger.intend(name)
    place = contender.log(name, draw)
    if place is None:
        ledger.refuse(name)
    else:
        ledger.acknowledge(name, place)


class _Forks:
    """Children of a process whose threads go on logging: each logs a little of its own, and ends somehow."""

    def __init__(self, contender: Contender, instance: str, ledgers: Path, draw: random.Random) -> None:
        self._contender = contender
        self._instance = instance
        self._ledgers = ledgers
        self._draw = draw
        self._count = 0
        self._children: list[int] = []

    def pause_s(self) -> float:
        """Until the next fork."""
        return self._draw.uniform(1.0, 6.0)

    def fork(self) -> None:
        """One more child. Those that have ended must have ended well."""
        self._children = [child for child in self._children if not self._has_ended(child, os.WNOHANG)]
        self._count += 1
        name = child_of(self._instance, self._count)
        seed = self._draw.random()
        child = os.fork()
        if child == 0:
            signal.alarm(_CHILD_MAX_S)  # a deadlock ends here, and the parent says so
            try:
                self._live(name, random.Random(seed))
            except BaseException:
                traceback.print_exc()
                os._exit(_FAULT)
            os._exit(0)
        self._children.append(child)

    def wait(self) -> None:
        """All of them have ended."""
        for child in self._children:
            self._has_ended(child, 0)

    def _live(self, name: str, draw: random.Random) -> None:
        ledger = LedgerFile(self._ledgers, name)
        for number in range(draw.randrange(40)):
            _log_one(self._contender, ledger, f"{name}.0.{number}", draw)
            time.sleep(draw.uniform(0, 0.03))
        if draw.random() < 0.5:
            self._contender.close()

    def _has_ended(self, child: int, options: int) -> bool:
        ended, status = os.waitpid(child, options)
        if ended and status:
            code = os.waitstatus_to_exitcode(status)
            print(f"{self._instance}: a forked child ended with {code}", file=sys.stderr, flush=True)
            os._exit(_FAULT)
        return ended != 0


def _main(contender: ContenderName, instance: str, ledgers: Path, seed: str) -> int:
    try:
        logger = CONTENDERS[contender]()
    except JournalUnwritable as error:
        print(error, file=sys.stderr)
        return NO_JOURNAL
    ledger = LedgerFile(ledgers, instance)
    stop = threading.Event()
    names = [f"{instance}.{number}" for number in range(_THREADS)]
    threads = [
        threading.Thread(target=_log, args=(logger, ledger, name, random.Random(f"{seed}/{name}"), stop))
        for name in names
    ]
    for thread in threads:
        thread.start()
    forks = _Forks(logger, instance, ledgers, random.Random(f"{seed}/{instance}"))
    while not select.select([sys.stdin], [], [], forks.pause_s())[0]:
        if contender is ContenderName.OURS:
            forks.fork()
    stop.set()
    forks.wait()
    for thread in threads:
        thread.join()
    logger.close()
    return 0


if __name__ == "__main__":
    name, instance, ledgers, seed = sys.argv[1:]
    sys.exit(_main(ContenderName(name), instance, Path(ledgers), seed))
