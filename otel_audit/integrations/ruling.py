"""What a permission check of an application says, whatever framework asks it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Ruling"]


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a permission check decided, if it wants to say more than yes or no. True when it allows."""

    allowed: bool
    reason: str = ""
    policy_id: str = ""

    def __bool__(self) -> bool:
        return self.allowed
