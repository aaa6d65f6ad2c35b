"""Applications and servers that the instrumentors leave alone: somebody else records their requests and calls."""

from __future__ import annotations

from weakref import WeakSet

__all__ = ["is_kept_out", "keep_out"]

_kept_out: WeakSet[object] = WeakSet()


def keep_out(recorded: object) -> None:
    """From here on no instrumentor records this Starlette application, or this server of the MCP SDK 1.x.

    It is without effect on one that has begun to run.
    """
    _kept_out.add(recorded)


def is_kept_out(candidate: object) -> bool:
    """Whether `keep_out` was called for it."""
    return candidate in _kept_out
