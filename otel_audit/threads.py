"""Use the threads, locks and queues of the operating system, and keep state consistent while a process forks.

A server may patch the standard library before this package is imported, after it, or in a worker that it forks from a
process that has loaded everything. Objects made before a patch stay unpatched. Ours are therefore always the real ones:
none of our threads waits for a greenlet to yield, and no slow disk or network blocks a hub. A greenlet never yields
while it holds one of our locks, so greenlets never wait for each other there. A greenlet that waits for one of our
threads polls, and other greenlets run in between.

A fork waits until no journal is in the middle of an append. Otherwise the child would get a copy of a half-updated
state.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
import weakref
from _queue import SimpleQueue  # the one in `queue` is replaced by gevent
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from queue import Empty
from typing import Any, Final, Protocol, TypeVar

__all__ = [
    "FORKS_WAIT",
    "Forkable",
    "RealThread",
    "SimpleQueue",
    "acquired",
    "begin_anew",
    "get_ident",
    "give_way",
    "giving_way",
    "new_lock",
    "new_rlock",
    "process",
    "real_sleep",
    "wait_for_word",
    "watch",
]

T = TypeVar("T")
R = TypeVar("R")

_LOOK_S: Final = 0.002
_FORK_LOOK_S: Final = 0.0002
_FORK_WAITS_S: Final = 1.0  # for a holder that is itself waiting for the forking thread


def _patched(module: str) -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched(module))


def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    found = getattr(importlib.import_module(module), name)
    return found if monkey is None else monkey.get_original(module, name)


new_lock: Final[Callable[[], threading.Lock]] = _original("_thread", "allocate_lock")
new_rlock: Final[Callable[[], threading.RLock]] = _original("_thread", "RLock")
get_ident: Final[Callable[[], int]] = _original("_thread", "get_ident")
real_sleep: Final[Callable[[float], None]] = _original("time", "sleep")  # for the holder of one of our locks
_GIVE_WAY_S: Final = 0.0001
_ITEMS_AT_ONCE: Final = 256
_start_new_thread: Final = _original("_thread", "start_new_thread")


class _ForksWait:
    """A context in which no other thread forks this process: `with FORKS_WAIT:`.

    It is for native code that takes locks of its own, such as the mutex of RE2's automaton or that of stderr's buffer.
    If a thread of the parent held such a lock during a fork, the child would inherit it with nobody to release it, and
    its first event, or its first word on stderr, would wait for ever. A fork waits for at most a second, and threads
    that arrive meanwhile wait for the fork. The same thread may enter it again.
    """

    __slots__ = ("_forks", "_inside")

    def __init__(self) -> None:
        self._inside: dict[int, int] = {}  # how many times each thread has entered
        self._forks = 0

    def __enter__(self) -> None:
        me = get_ident()
        count = self._inside.get(me, 0) + 1
        self._inside[me] = count  # before the check, so that a fork that the check misses sees this thread
        if self._forks and count == 1:
            self._let_fork(me)

    def __exit__(self, *error: object) -> None:
        me = get_ident()
        count = self._inside.get(me, 1) - 1
        if count:
            self._inside[me] = count
        else:
            self._inside.pop(me, None)

    def call(self, function: Callable[[T], R], argument: T) -> R:
        """Call the function inside the context and return its result.

        For each event this is cheaper than `with` by two frames.
        """
        me = get_ident()
        inside = self._inside
        if me in inside:
            with self:
                return function(argument)
        inside[me] = 1
        try:
            if self._forks:
                self._let_fork(me)
            return function(argument)
        finally:
            self._inside.pop(me, None)  # in a child, if a signal handler has forked meanwhile

    def _let_fork(self, me: int) -> None:
        deadline = time.monotonic() + 2 * _FORK_WAITS_S
        while self._forks and time.monotonic() < deadline:
            self._inside.pop(me, None)
            real_sleep(_FORK_LOOK_S)
            self._inside[me] = 1

    def before_fork(self) -> None:
        """Return when no other thread is inside, or after a second."""
        self._forks += 1
        me, deadline = get_ident(), time.monotonic() + _FORK_WAITS_S
        while any(each != me for each in tuple(self._inside)) and time.monotonic() < deadline:
            real_sleep(_FORK_LOOK_S)

    def after_fork_in_parent(self) -> None:
        """Let the waiting threads in."""
        self._forks = max(0, self._forks - 1)

    def after_fork_in_child(self) -> None:
        """Forget the parent's threads, and its forks."""
        me = get_ident()
        self._forks, self._inside = 0, {me: self._inside[me]} if me in self._inside else {}


FORKS_WAIT: Final = _ForksWait()
os.register_at_fork(
    before=FORKS_WAIT.before_fork,
    after_in_parent=FORKS_WAIT.after_fork_in_parent,
    after_in_child=FORKS_WAIT.after_fork_in_child,
)


class RealThread:
    """A daemon thread of the operating system that runs one function once."""

    def __init__(self, work: Callable[[], None], *, name: str) -> None:
        self._work = work
        self._name = name
        self._under_way = new_lock()
        self._under_way.acquire()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started, since the interpreter is shutting down or there are too many.
        """
        if _patched("threading"):
            _load_what_sockets_need()
            _start_new_thread(self._run, ())
        else:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()

    @property
    def is_over(self) -> bool:
        """Return True once the function has returned or failed. The thread must have been started."""
        return not self._under_way.locked()

    def join(self, timeout_s: float) -> None:
        """Return when the function has ended, or after this many seconds."""
        if acquired(self._under_way, timeout_s):
            self._under_way.release()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._under_way.release()


def _load_what_sockets_need() -> None:
    """Import here what gevent's sockets would import in the new thread.

    A greenlet that imports the same modules at that moment would wait for the thread, and gevent ends such a wait with
    an exception if its hub has nothing else to do.
    """
    hub = sys.modules["gevent"].get_hub()
    _ = hub.threadpool, hub.resolver


def acquired(lock: threading.Lock | threading.RLock, timeout_s: float) -> bool:
    """Acquire a lock within this many seconds, even for a caller that is a greenlet. Return True if it was acquired."""
    timeout_s = max(0.0, timeout_s)
    if not _gives_way():
        return lock.acquire(timeout=timeout_s)
    return _looked(lambda: lock.acquire(blocking=False), timeout_s)


def wait_for_word(words: SimpleQueue[None], timeout_s: float) -> None:
    """Take one item from the queue within this many seconds, even for a caller that is a greenlet."""
    if not _gives_way():
        with suppress(Empty):
            words.get(timeout=max(0.0, timeout_s))
        return

    def is_there() -> bool:
        try:
            words.get_nowait()
        except Empty:
            return False
        return True

    _looked(is_there, timeout_s)


def _gives_way() -> bool:
    """Return True if a sleep of the caller lets other greenlets of its thread run."""
    if not _patched("time"):
        return False
    gevent = sys.modules["gevent"]
    return gevent.getcurrent() is not gevent.get_hub()  # a signal handler may run in the hub, which must not sleep


def give_way(pause_s: float = _GIVE_WAY_S) -> None:
    """Let other threads run. Without a sleep they get the interpreter only when its switch interval is over: 5 ms."""
    real_sleep(pause_s)


def giving_way(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of a long loop, and let other threads run after every 256."""
    for count, item in enumerate(items, 1):
        if count % _ITEMS_AT_ONCE == 0:
            give_way()
        yield item


def _looked(try_once: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (done := try_once()) and (left_s := deadline - time.monotonic()) > 0:
        time.sleep(min(_LOOK_S, left_s))
    return done


class Forkable(Protocol):
    """An object whose state must not change while its process forks."""

    def hold(self) -> Iterator[None]:
        """Return a generator that holds the object still from its first step until it is closed."""

    def held(self) -> None:
        """Finish, in the parent after a fork, what had to wait."""

    def forked(self) -> None:
        """Leave, in the child, the parent's belongings to the parent."""


_times_reopened = 0


def process() -> tuple[int, int]:
    """Return an id that distinguishes this process from its parent and from one restored from the same memory.

    They must not share connections.
    """
    return os.getpid(), _times_reopened


def begin_anew() -> None:
    """Treat this as a new process from now on, since its memory was copied."""
    global _times_reopened
    _times_reopened += 1


class _Holds(threading.local):
    """The objects that this thread holds still. Two threads may fork at the same time."""

    now: tuple[Iterator[None], ...] = ()


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_holds = _Holds()


def watch(forkable: Forkable) -> None:
    """Keep forks out of the middle of what this object does, for as long as it lives."""
    _watched.add(forkable)


def _before() -> None:
    for forkable in sorted(_watched, key=id):  # in a fixed order, or two forking threads could wait for each other
        hold = forkable.hold()
        # Stored before it holds anything, so that the end of the fork releases it whatever interrupts this.
        _holds.now = (*_holds.now, hold)
        next(hold, None)


def _after_in_parent() -> None:
    for forkable in list(_watched):
        forkable.held()


def _after_in_child() -> None:
    _holds.now = ()
    for forkable in list(_watched):
        forkable.forked()


os.register_at_fork(
    before=_before,
    # Not a function in Python, which Ctrl-C could stop at its first step, with every journal locked for ever: the
    # generators are closed when nothing refers to them any more.
    after_in_parent=partial(setattr, _holds, "now", ()),
    after_in_child=_after_in_child,
)
os.register_at_fork(after_in_parent=_after_in_parent)
