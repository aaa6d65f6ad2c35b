"""The ids of events, streams and requests, and what keeps two processes with one memory from making the same ones.

The generator has a state in each thread. The child of a fork has its parent's in one thread; of a snapshot that is
restored twice, both have the state of all threads.
"""

from __future__ import annotations

from collections.abc import Callable

import uuid_utils

__all__ = ["new_id", "new_random_id", "renew", "reseed"]

# Looked up here at each call, since `renew` replaces them.
new_id: Callable[[], uuid_utils.UUID] = uuid_utils.uuid7
new_random_id: Callable[[], uuid_utils.UUID] = uuid_utils.uuid4
reseed = uuid_utils.reseed_rng  # of the calling thread


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
