"""What keeps a fork and gRPC's library apart.

The library runs threads of its own, which a child does not have. Between calls it is prepared for a fork, and starts
anew in the child. During a call it is not. Found by running grpcio 1.85 with each value that the environment variable
GRPC_ENABLE_FORK_SUPPORT may have when the library is loaded:

* not set: one child in ten that is forked during a call is ended by a segmentation fault;
* `1`: a child that is forked during a call never comes back from `os.fork()`;
* `0`: every call in a child hangs, past its deadline, or aborts the process, if its parent made a call before.

So a fork waits for calls that are under way, and ends those that take long: their records are sent again. A fork from
C runs no hooks of Python, and calls of other parts of the process are theirs to look after.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty

from otel_audit.threads import SimpleQueue, new_lock

__all__ = ["call_in_progress", "trouble_after_fork"]

# A call to a healthy endpoint has ended by then, and a fork that takes a second is not yet taken for one that hangs.
_CALL_MAY_TAKE_S = 1.0
_END_MAY_TAKE_S = 5.0

_SETTING = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").strip().lower()
_IS_OFF = _SETTING in ("0", "false", "no", "off")


class _Calls:
    """The calls that are under way in this process, and the forks that wait for them."""

    def __init__(self) -> None:
        self._lock = new_lock()
        self._enders: list[Callable[[], None]] = []
        self._forks: list[threading.Lock] = []  # each is locked until its fork is over
        self._ends: SimpleQueue[None] = SimpleQueue()

    def begin(self, end: Callable[[], None]) -> None:
        while True:
            with self._lock:
                if not self._forks:
                    self._enders.append(end)
                    return
                fork = self._forks[-1]
            with fork:
                continue

    def ended(self, end: Callable[[], None]) -> None:
        with self._lock:
            self._enders.remove(end)
            for _ in self._forks:
                self._ends.put(None)

    def before_fork(self) -> None:
        fork = new_lock()
        fork.acquire()
        with self._lock:
            self._forks.append(fork)
        if self._are_over_within(_CALL_MAY_TAKE_S):
            return
        with self._lock:
            enders = list(self._enders)
        for end in enders:
            end()
        self._are_over_within(_END_MAY_TAKE_S)

    def after_fork(self) -> None:
        with self._lock:
            if self._forks:
                self._forks.pop().release()

    def _are_over_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._enders and (left_s := deadline - time.monotonic()) > 0:
            with suppress(Empty):
                self._ends.get(timeout=left_s)
        return not self._enders


_calls = _Calls()
_used_by_pid: int | None = None


@contextmanager
def call_in_progress(end: Callable[[], None]) -> Iterator[None]:
    """Inside, the library may be used: no fork takes place. Not to be nested.

    `end` is called, on another thread, when a fork cannot wait any longer: it makes the call come back at once.
    """
    global _used_by_pid
    calls = _calls
    calls.begin(end)
    _used_by_pid = os.getpid()
    try:
        yield
    finally:
        calls.ended(end)


def trouble_after_fork() -> str | None:
    """Why a call would hang in this process; None when it works."""
    if _IS_OFF and _used_by_pid not in (None, os.getpid()):
        return (
            f"gRPC does not work in a forked process with GRPC_ENABLE_FORK_SUPPORT={_SETTING}: do not set it, or set "
            "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
        )
    return None


def _after_fork_in_child() -> None:
    global _calls
    _calls = _Calls()  # threads of the parent may have been inside the other one


os.register_at_fork(
    before=lambda: _calls.before_fork(),
    after_in_parent=lambda: _calls.after_fork(),
    after_in_child=_after_fork_in_child,
)
