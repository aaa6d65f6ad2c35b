"""The rules of a policy, ready to be asked: which one an event meets first, and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from otel_audit.policy.decision import Decision, Level
from otel_audit.policy.facts import Facts, is_successful_read
from otel_audit.policy.rule import CONDITIONS, Glob, Rule, values_of
from otel_audit.settings import OnLoss

__all__ = ["Decisions"]

_REMEMBERED: Final = 256  # types are free words: a flood of them must not take memory
_KNOWN_BEFORE: Final = tuple(name for name in CONDITIONS if name not in ("type", "outcome"))


class Decisions:
    """The rules in force. Any thread; nothing changes but what is remembered of event types.

    An event meets the first rule whose conditions it fulfils. With `log_successful_reads=False` there is one before
    all others, Feast's: it leaves out reads that succeeded. Without a rule, the event is recorded whole, and `on_loss`
    says what happens if that fails.
    """

    def __init__(self, rules: Sequence[Rule], *, on_loss: OnLoss, log_successful_reads: bool = True) -> None:
        self.rules = tuple(rules)
        self.default = Decision(Level.REQUEST, on_loss)
        self._drops_reads = not log_successful_reads
        self._not_kept = Decision(Level.NONE, on_loss)
        self._decisions = tuple(rule.decision(on_loss) for rule in self.rules)
        self._types = _Column("type", self.rules)
        self._by_type: dict[str, _RulesOfType] = {}
        self._by_numbers: dict[int, _RulesOfType] = {}

    def on(self, facts: Facts) -> Decision:
        """What becomes of an event."""
        if self._drops_reads and is_successful_read(facts):
            return self._not_kept
        number = self._of_type(facts.type).first(facts) if self.rules else None
        return self.default if number is None else self._decisions[number]

    def before(self, facts: Facts) -> Decision:
        """What becomes of an event of which all is known but its outcome: the sternest of what it may come to.

        It is kept if it may be kept, without its free texts if they may be left out, and `closed` if it may be.
        """
        may = list(self._may_become(facts))
        kept = [decision for decision in may if decision.keep]
        if not kept:
            return self._not_kept
        level = Level.REQUEST if all(decision.level is Level.REQUEST for decision in may) else Level.METADATA
        closed = any(decision.on_loss is OnLoss.CLOSED for decision in kept)
        return Decision(level, OnLoss.CLOSED if closed else OnLoss.OPEN)

    def rule(self, facts: Facts) -> Rule | None:
        """The rule that an event meets, None if it meets none, or the one about successful reads."""
        number = None if self.is_dropped_read(facts) else self._of_type(facts.type).first(facts)
        return None if number is None else self.rules[number]

    def is_dropped_read(self, facts: Facts) -> bool:
        """Whether it is left out because of `log_successful_reads=False`."""
        return self._drops_reads and is_successful_read(facts)

    def _may_become(self, facts: Facts) -> Iterator[Decision]:
        if self.is_dropped_read(facts._replace(outcome="success")):
            yield self._not_kept
        for number in self._of_type(facts.type).whatever_outcome(facts):
            yield self._decisions[number]
            if "outcome" not in self.rules[number].conditions:
                return
        yield self.default

    def _of_type(self, event_type: str) -> _RulesOfType:
        known = self._by_type.get(event_type)
        if known is None:
            numbers = self._types.met_by((event_type,), (1 << len(self.rules)) - 1)
            known = self._by_numbers.get(numbers) or _RulesOfType(self.rules, numbers)
            if len(self._by_type) < _REMEMBERED:
                self._by_type[event_type] = self._by_numbers[numbers] = known
        return known


class _RulesOfType:
    """The rules that an event of one type can meet, by their numbers in the whole policy."""

    __slots__ = ("_all", "_before", "_numbers", "_outcome")

    def __init__(self, policy: Sequence[Rule], numbers: int) -> None:
        self._numbers = tuple(_each(numbers))
        self._all = (1 << len(self._numbers)) - 1
        rules = [policy[number] for number in self._numbers]
        asked = {name for rule in rules for name in rule.conditions}
        # What no rule asks costs nothing.
        self._before = tuple((name, _Column(name, rules)) for name in _KNOWN_BEFORE if name in asked)
        self._outcome = _Column("outcome", rules) if "outcome" in asked else None

    def first(self, facts: Facts) -> int | None:
        """The first rule that the event fulfils."""
        met = self._met_before(facts)
        if met and self._outcome is not None:
            met = self._outcome.met_by(values_of(facts, "outcome"), met)
        return self._numbers[_lowest(met)] if met else None

    def whatever_outcome(self, facts: Facts) -> Iterator[int]:
        """All rules that the event fulfils with one outcome or another, in their order."""
        return (self._numbers[place] for place in _each(self._met_before(facts)))

    def _met_before(self, facts: Facts) -> int:
        met = self._all
        for name, column in self._before:
            if not met:
                break
            met = column.met_by(values_of(facts, name), met)
        return met


class _Column:
    """One condition of all rules: which of them a value fulfils. Sets of rules are numbers with a bit for each."""

    __slots__ = ("_globs", "_is_open", "_words")

    def __init__(self, condition: str, rules: Sequence[Rule]) -> None:
        self._is_open = 0
        self._words: dict[str, int] = {}
        globs: dict[str, int] = {}
        for number, rule in enumerate(rules):
            patterns = rule.conditions.get(condition)
            if patterns is None:
                self._is_open |= 1 << number
            for pattern in patterns or ():
                place = globs if "*" in pattern else self._words
                place[pattern] = place.get(pattern, 0) | 1 << number
        self._globs = tuple((Glob(text), numbers) for text, numbers in globs.items())

    def met_by(self, values: tuple[str, ...], among: int) -> int:
        met = self._is_open
        for value in values:
            met |= self._words.get(value, 0)
            for glob, numbers in self._globs:
                if numbers & among & ~met and glob.matches(value):
                    met |= numbers
        return met & among


def _lowest(numbers: int) -> int:
    return (numbers & -numbers).bit_length() - 1


def _each(numbers: int) -> Iterator[int]:
    while numbers:
        yield _lowest(numbers)
        numbers &= numbers - 1
