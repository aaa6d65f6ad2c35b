"""Make the ids of events, streams and requests, even when two processes have the same memory.

The generator keeps a state in each thread. After a fork, the child has its parent's state in one thread. If a snapshot
is restored twice, both processes have the same state in all threads.
"""

from __future__ import annotations

from collections.abc import Callable

import uuid_utils

__all__ = ["new_id", "new_random_id", "renew", "reseed"]

# Callers look these up at each call, since `renew` replaces them.
new_id: Callable[[], uuid_utils.UUID] = uuid_utils.uuid7
new_random_id: Callable[[], uuid_utils.UUID] = uuid_utils.uuid4
reseed = uuid_utils.reseed_rng  # for the calling thread only


def renew() -> None:
    """Make every id of every thread from fresh entropy of the operating system, from now on."""
    global new_id, new_random_id
    new_id, new_random_id = _fresh_id, _fresh_random_id


def _fresh_id() -> uuid_utils.UUID:
    """Return a UUIDv7."""
    reseed()
    return uuid_utils.uuid7()


def _fresh_random_id() -> uuid_utils.UUID:
    """Return a random UUID."""
    reseed()
    return uuid_utils.uuid4()
