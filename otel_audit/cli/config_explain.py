"""`otel-audit config --explain EVENT.json`: which rule of the policy an event meets, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from otel_audit.errors import ConfigError
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.policy import Decision, Decisions, Facts, Level, Policy, Rule, read_policy
from otel_audit.settings import OnLoss, Settings
from otel_audit.settings.names import known_names
from otel_audit.terminal import escaped, shown_json

__all__ = ["Explanation", "event_of_json", "explained"]

_PARTS: Final[Mapping[str, type[BaseModel]]] = {
    "principal": AuditPrincipal,
    "source": AuditSource,
    "action": AuditAction,
    "resource": AuditResource,
}
# What the journal adds to an event: a line of it can be asked about as it stands.
_OF_THE_LINE: Final = frozenset({"time_ns", "observed_ns", "stream_id", "seq", "prev_hash"})

_LEVELS: Final = {
    Level.NONE: "not recorded, only counted",
    Level.METADATA: "recorded without detail, attributes and arguments_digest",
    Level.REQUEST: "recorded whole",
}
_RULES_OF_LOSS: Final = {
    OnLoss.OPEN: "when it cannot be recorded, the application goes on, and the loss is counted and said",
    OnLoss.CLOSED: "when it cannot be recorded, AuditUnavailable is raised",
}
_BEGINS: Final = "an operation() begins with an event of its own, and does not run if that cannot be recorded"
_BEGINS_NOT: Final = "an operation() is recorded once, when it ends"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of an event, and why. `begins`: whether an operation of it is recorded before it runs too."""

    facts: Facts
    policy: Policy | None
    rule: Rule | None
    is_dropped_read: bool
    decision: Decision
    begins: bool

    def as_text(self) -> str:
        """For people."""
        level, on_loss, _ = self.decision
        rows = [("event", self._event()), ("rule", self._rule()), ("level", f"{level}: {_LEVELS[level]}")]
        if self.decision.keep:
            rows.append(("on_loss", f"{on_loss}: {_RULES_OF_LOSS[on_loss]}"))
        rows.append(("operation", _BEGINS if self.begins else _BEGINS_NOT if self.decision.keep else _LEVELS[level]))
        return "\n".join(f"{name:<9}  {escaped(text)}" for name, text in rows)

    def as_json(self) -> str:
        """For machines."""
        level, on_loss, _ = self.decision
        return shown_json(
            {
                "policy": self.policy.path if self.policy is not None else None,
                "policy_hash": self.policy.sha256 if self.policy is not None else None,
                "rule": _rule_as_json(self.rule) if self.rule is not None else None,
                "log_successful_reads": not self.is_dropped_read,
                "keep": self.decision.keep,
                "level": level,
                "on_loss": on_loss,
                "operation_begins": self.begins,
            }
        )

    def _event(self) -> str:
        facts = self.facts
        outcome = facts.outcome if facts.outcome == facts.derived else f"{facts.outcome!r}, which is {facts.derived}"
        asked = ("route", "tool", "actor", "actor_id", "issuer")
        given = {name: getattr(facts, name) for name in asked}
        return ", ".join(
            [
                f"type {facts.type!r}",
                *(f"{name} {value!r}" for name, value in given.items() if value),
                f"outcome {outcome}",
            ]
        )

    def _rule(self) -> str:
        if self.is_dropped_read:
            return "log_successful_reads is false: a read that succeeded; this comes before the rules of the policy"
        if self.policy is None:
            return "none: OTEL_AUDIT_POLICY is not set"
        if self.rule is None:
            return f"none of the {len(self.policy.rules)} in {self.policy.path}: the defaults"
        asked = [f"{name}: {' or '.join(patterns)}" for name, patterns in self.rule.conditions.items()]
        number = self.policy.rules.index(self.rule)
        return f"{self.policy.path}:{self.rule.line}:{self.rule.column}: $.rules[{number}]: {', '.join(asked) or 'all'}"


def explained(event: AuditEvent, settings: Settings) -> Explanation:
    """What becomes of the event with these settings and their policy.

    Raises:
        ConfigError: the policy is wrong.
    """
    policy = read_policy(settings.policy) if settings.policy is not None else None
    decisions = Decisions(
        policy.rules if policy is not None else (),
        on_loss=settings.on_loss,
        log_successful_reads=settings.log_successful_reads,
    )
    facts = Facts.of(event)
    before = decisions.before(facts)
    return Explanation(
        facts=facts,
        policy=policy,
        rule=decisions.rule(facts),
        is_dropped_read=decisions.is_dropped_read(facts),
        decision=decisions.on(facts),
        begins=before.keep and before.on_loss is OnLoss.CLOSED,
    )


def event_of_json(content: bytes, name: str) -> AuditEvent:
    """The event in a file: one JSON object, strictly. A line of a journal is one.

    Raises:
        ConfigError: it is none; the message shows no value of it.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8, or brackets in brackets
        place = f"{name}:{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else name
        raise ConfigError(
            f"{place}: expected one event as JSON, got what is none; give one object, as in a line"
        ) from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{name}: expected one event, a JSON object, got {type(fields).__name__}; give one object")
    if "system" in fields:
        raise ConfigError(f"{name}: expected an event of the application, got one of the journal; no policy is asked")
    for path, unknown, names in _unknown(fields):
        raise ConfigError(
            f"{name}: {path}: expected a field of an event, got {unknown!r}; {known_names(unknown, names)}"
        )
    if "event_type" not in fields:
        raise ConfigError(f"{name}: $.event_type: expected the type of the event, got none; add it")
    event = AuditEvent.model_validate(fields)
    for path, value in _changed(fields, event.model_dump(mode="json"), "$"):
        raise ConfigError(
            f"{name}: {path}: expected a value of the type in docs/schema.md, got {type(value).__name__}; correct it"
        )
    return event


def _changed(given: Mapping[str, Any], taken: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any]]:
    """The values that the event does not have as they are given: in a service they would become something else."""
    for name, value in given.items():
        if name not in taken:
            continue  # one that the journal adds
        if isinstance(value, dict) and isinstance(taken[name], dict) and name != "attributes":
            yield from _changed(value, taken[name], f"{at}.{name}")
        elif value != taken[name]:
            yield f"{at}.{name}", value


def _unknown(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Fields that would be ignored, and with them what somebody thinks the policy sees."""
    known = [*AuditEvent.model_fields, *sorted(_OF_THE_LINE)]
    yield from (("$", name, known) for name in fields if name not in known)
    for part, model in _PARTS.items():
        given = fields.get(part)
        names = list(model.model_fields)
        yield from (
            (f"$.{part}", name, names) for name in (given if isinstance(given, dict) else ()) if name not in names
        )


def _rule_as_json(rule: Rule) -> dict[str, Any]:
    return {"line": rule.line, "column": rule.column, "conditions": rule.conditions}
