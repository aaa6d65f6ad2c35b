"""Find the rule of a policy that matches an event, and decide what follows.

`Facts` are the properties of an event that a rule may examine. `Rule` is one entry of the file. `Decisions` finds the
first rule that matches an event, in a time that hardly depends on the number of rules. `Decision` is the answer.
`as_metadata` removes the caller's free texts from an event that is kept at level `metadata`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_audit.event_schema import FIELDS, Outcome
from otel_audit.records.facts import http_facts_of
from otel_audit.settings import OnLoss

if TYPE_CHECKING:
    from otel_audit.event import AuditEvent

__all__ = [
    "CONDITIONS",
    "ROUTE_ATTRIBUTE",
    "Decision",
    "Decisions",
    "Facts",
    "Glob",
    "Level",
    "Rule",
    "as_metadata",
    "is_successful_read",
    "path_of",
    "values_of",
]


# Source: OTel semantic conventions, HTTP: the template of the path.
ROUTE_ATTRIBUTE: Final = "http.route"

_READ_TYPES: Final = frozenset({"mcp.tools.call", "http.request"})
_READ_TOOLS: Final = frozenset({"get_online_features", "retrieve_online_documents", "get_historical_features"})
_READ_ACTIONS: Final = frozenset({"READ_ONLINE", "READ_OFFLINE"})


class Facts(NamedTuple):
    """The properties of an event, as texts, empty if unknown.

    `route` is the route template, or else the path without its query. `actor` is the name of the principal, and
    `actor_id` and `issuer` identify it. `outcome` is the stored word. `actions` were done to the resource, for the rule
    about reads.
    """

    type: str
    route: str = ""
    tool: str = ""
    actor: str = ""
    outcome: str = ""
    actions: Sequence[str] = ()
    actor_id: str = ""
    issuer: str = ""

    @classmethod
    def of(cls, event: AuditEvent) -> Facts:
        """Return the facts of an event, whatever was assigned to its fields."""
        try:
            return cls._read(event)
        except Exception:  # the model lost a field, or a value's own methods failed: no rule can examine it
            return cls(_text(event.event_type))

    @classmethod
    def _read(cls, event: AuditEvent) -> Facts:
        attributes: Any = event.attributes
        template = _text(dict.get(attributes, ROUTE_ATTRIBUTE)) if isinstance(attributes, dict) else ""
        return cls(
            _text(event.event_type),
            template or path_of(_text(event.action.path)),
            _text(event.action.mcp_tool),
            _text(event.principal.username),
            _text(event.outcome),
            tuple(map(_text, event.resource.actions)),
            _text(event.principal.id),
            _text(event.principal.issuer),
        )

    @property
    def derived(self) -> str:
        """Return the derived outcome, such as `denied` for the word `deny`."""
        return _derived(self.outcome)


@lru_cache(maxsize=64)
def _derived(word: str) -> str:
    return Outcome.of(word).value


def path_of(path: str) -> str:
    """Return a path without its query."""
    return path.partition("?")[0] if "?" in path else path


def is_successful_read(facts: Facts) -> bool:
    """Return True if `log_successful_reads=False` leaves the event out.

    Source: Feast 0.67 `AuditLogger._is_read_event`.
    """
    if facts.outcome != "success" or facts.type not in _READ_TYPES:
        return False
    return facts.tool in _READ_TOOLS or (bool(facts.actions) and _READ_ACTIONS.issuperset(facts.actions))


def _text(value: object) -> str:
    """Return the text itself, and not an object of a class derived from `str`, whose methods may do anything."""
    return value if type(value) is str else str.__str__(value) if isinstance(value, str) else ""


class Level(StrEnum):
    """The extent to which an event is recorded: nothing; who did what, when and how it ended; or everything given.

    Source: the levels of Kubernetes' audit policy, without its `RequestResponse`.
    """

    NONE = "none"
    METADATA = "metadata"
    REQUEST = "request"


class Decision(NamedTuple):
    """The decision on an event: how much of it is recorded, and what happens if that fails.

    If `is_vital`, it is written on a nearly full disk whatever its outcome, as with `closed`. `tags` are words that the
    event gets.
    """

    level: Level
    on_loss: OnLoss
    is_vital: bool = False
    tags: tuple[str, ...] = ()

    @property
    def keep(self) -> bool:
        """Return True if the event is recorded at all."""
        return self.level is not Level.NONE

    def kept(self) -> Decision:
        """Return the decision for an event that is recorded in any case."""
        return self if self.keep else self._replace(level=Level.METADATA)


_FREE_FIELDS: Final = ("detail", "attributes")


def as_metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an event without the caller's free ones: detail, attributes and digest of the arguments.

    The route template stays, since it is a text of the program. So do the method and status of a request, which a
    helper writes only into the detail.
    """
    left = {key: value for key, value in fields.items() if key not in _FREE_FIELDS}
    action = fields.get("action")
    if isinstance(action, dict):
        left["action"] = {key: value for key, value in action.items() if key != "arguments_digest"}
    if "detail" in fields:
        left["detail"] = ""
    attributes = fields.get("attributes")
    if isinstance(attributes, dict) and ROUTE_ATTRIBUTE in attributes:
        left["attributes"] = {ROUTE_ATTRIBUTE: attributes[ROUTE_ATTRIBUTE]}
    _keep_request(left, fields)
    return {key: left[key] for key in FIELDS if key in left}


def _keep_request(left: dict[str, Any], fields: Mapping[str, Any]) -> None:
    action = left.get("action")
    if fields.get("event_type") != "http.request" or not isinstance(action, dict):
        return
    said = http_facts_of(fields)
    if said.method:
        action.setdefault("method", said.method)
    if said.status_code is not None:
        left.setdefault("status_code", said.status_code)


# What a rule may ask for; each is a field of `Facts`.
CONDITIONS: Final = ("type", "route", "tool", "actor", "actor_id", "issuer", "outcome")


class Glob:
    """A pattern in which `*` stands for any characters, none and `/` included. All others stand for themselves.

    It is matched piece by piece without going back, so that no crafted text takes long.
    """

    __slots__ = ("_first", "_last", "_middle", "_min_chars", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._first, *middle, self._last = text.split("*")
        self._middle = tuple(piece for piece in middle if piece)
        self._min_chars = len(text) - text.count("*")

    def matches(self, value: str) -> bool:
        """Return True if the whole value matches."""
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
    """A rule of the file. `line` and `column` count from 1. `conditions` has entries only for the conditions given.

    `level` and `on_loss` are None if the rule leaves them to the defaults.
    """

    line: int
    column: int
    conditions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    level: Level | None = None
    on_loss: OnLoss | None = None
    tags: tuple[str, ...] = ()

    def decision(self, on_loss: OnLoss) -> Decision:
        """Return the decision of the rule. `on_loss` is the setting."""
        return Decision(self.level or Level.REQUEST, self.on_loss or on_loss, tags=self.tags)


def values_of(facts: Facts, condition: str) -> tuple[str, ...]:
    """Return the values of which one must match: word and meaning of an outcome, id and name of an actor."""
    if condition == "outcome":
        return facts.outcome, facts.derived
    if (
        condition == "actor" and facts.actor_id
    ):  # otherwise `actor: ""`, which means nobody, would match everybody without a name
        return (facts.actor_id, facts.actor) if facts.actor else (facts.actor_id,)
    return (getattr(facts, condition),)


_REMEMBERED: Final = 256  # types are free words, and a flood of them must not take memory
_KNOWN_BEFORE: Final = tuple(name for name in CONDITIONS if name not in ("type", "outcome"))


class Decisions:
    """The rules in force. Any thread; nothing changes except the cached event types.

    The first rule whose conditions all match decides. With `log_successful_reads=False` there is one before all others,
    Feast's, which leaves out successful reads. If no rule matches, the event is recorded whole, and `on_loss` decides
    what happens if that fails.
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
        """Return the decision on an event."""
        if self._drops_reads and is_successful_read(facts):
            return self._not_kept
        number = self._of_type(facts.type).first(facts) if self.rules else None
        return self.default if number is None else self._decisions[number]

    def before(self, facts: Facts) -> Decision:
        """Return the decision on an event before its outcome is known: the strictest that it may get.

        It is kept if it may be kept, without its free texts if they may be left out, and `closed` if it may be. It has
        every tag that it may get.
        """
        may = list(self._may_become(facts))
        kept = [decision for decision in may if decision.keep]
        if not kept:
            return self._not_kept
        level = Level.REQUEST if all(decision.level is Level.REQUEST for decision in may) else Level.METADATA
        closed = any(decision.on_loss is OnLoss.CLOSED for decision in kept)
        tags = tuple(dict.fromkeys(tag for decision in kept for tag in decision.tags))
        return Decision(level, OnLoss.CLOSED if closed else OnLoss.OPEN, tags=tags)

    def rule(self, facts: Facts) -> Rule | None:
        """Return the rule that matches an event.

        None if there is none, or if the rule about successful reads applies.
        """
        number = None if self.is_dropped_read(facts) else self._of_type(facts.type).first(facts)
        return None if number is None else self.rules[number]

    def is_dropped_read(self, facts: Facts) -> bool:
        """Return True if `log_successful_reads=False` leaves the event out."""
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
    """The rules that can match an event of one type, by their numbers in the whole policy."""

    __slots__ = ("_all", "_before", "_numbers", "_outcome")

    def __init__(self, policy: Sequence[Rule], numbers: int) -> None:
        self._numbers = tuple(_each(numbers))
        self._all = (1 << len(self._numbers)) - 1
        rules = [policy[number] for number in self._numbers]
        asked = {name for rule in rules for name in rule.conditions}
        # A property that no rule examines costs nothing.
        self._before = tuple((name, _Column(name, rules)) for name in _KNOWN_BEFORE if name in asked)
        self._outcome = _Column("outcome", rules) if "outcome" in asked else None

    def first(self, facts: Facts) -> int | None:
        """Return the first rule that matches the event."""
        met = self._met_before(facts)
        if met and self._outcome is not None:
            met = self._outcome.met_by(values_of(facts, "outcome"), met)
        return self._numbers[_lowest(met)] if met else None

    def whatever_outcome(self, facts: Facts) -> Iterator[int]:
        """Return all rules that match the event with any outcome, in order."""
        return (self._numbers[place] for place in _each(self._met_before(facts)))

    def _met_before(self, facts: Facts) -> int:
        met = self._all
        for name, column in self._before:
            if not met:
                break
            met = column.met_by(values_of(facts, name), met)
        return met


class _Column:
    """One condition of all rules, with the rules whose condition a value meets.

    A set of rules is a number with a bit for each.
    """

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
