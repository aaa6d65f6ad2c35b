"""One rule of a policy: which events it is about, and what it says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from otel_audit.policy.decision import Decision, Level
from otel_audit.policy.facts import Facts
from otel_audit.settings import OnLoss

__all__ = ["CONDITIONS", "Glob", "Rule", "values_of"]

# What a rule may ask for; each is a field of `Facts`.
CONDITIONS: Final = ("type", "route", "tool", "actor", "actor_id", "issuer", "outcome")


class Glob:
    """A pattern in which `*` stands for any characters, none and `/` included; all others stand for themselves.

    Matched from piece to piece without going back, so that no text takes long, however it was made.
    """

    __slots__ = ("_first", "_last", "_middle", "_min_chars", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._first, *middle, self._last = text.split("*")
        self._middle = tuple(piece for piece in middle if piece)
        self._min_chars = len(text) - text.count("*")

    def matches(self, value: str) -> bool:
        """Whether the whole value is of this pattern."""
        if len(value) < self._min_chars or not value.startswith(self._first) or not value.endswith(self._last):
            return False
        at, end = len(self._first), len(value) - len(self._last)
        for piece in self._middle:
            at = value.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return at <= end


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as it stands in the file. `line` and `column` count from 1; `conditions` has no entry for what is open.

    `level` and `on_loss`: None where the rule leaves them to the defaults.
    """

    line: int
    column: int
    conditions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    level: Level | None = None
    on_loss: OnLoss | None = None

    def decision(self, on_loss: OnLoss) -> Decision:
        """What follows from it, where `on_loss` is the setting."""
        return Decision(self.level or Level.REQUEST, self.on_loss or on_loss)


def values_of(facts: Facts, condition: str) -> tuple[str, ...]:
    """Return the values of which one must match: word and meaning of an outcome, id and name of an actor."""
    if condition == "outcome":
        return facts.outcome, facts.derived
    if condition == "actor" and facts.actor_id:  # or `actor: ""`, which is nobody, would match whoever has no name
        return (facts.actor_id, facts.actor) if facts.actor else (facts.actor_id,)
    return (getattr(facts, condition),)
