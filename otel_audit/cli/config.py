"""`otel-audit config`: print every setting in force and where it came from, or docs/settings.md from the same table.

With `--explain EVENT.json`, print which rule of the policy matches an event, and what follows from it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import click
from pydantic import BaseModel

from otel_audit.cli.command import WRONG_USAGE
from otel_audit.cli.options import GivenFile
from otel_audit.diagnosis.configuration import instrument_findings
from otel_audit.errors import ConfigError
from otel_audit.event import AuditAction, AuditEvent, AuditPrincipal, AuditResource, AuditSource
from otel_audit.notices import escaped, shown_json
from otel_audit.policy import Decision, Decisions, Facts, Level, Policy, Rule, read_policy
from otel_audit.redaction import Rules
from otel_audit.settings import Durability, OnLoss, OtlpSettings, Setting, Settings, table
from otel_audit.settings.otlp import OTLP_TABLE
from otel_audit.settings.setting import known_names
from otel_audit.settings.settings import IGNORED_VARIABLES
from otel_audit.settings.table import CORE_TABLE

__all__ = ["Explanation", "config", "event_of_json", "explained", "settings_markdown"]


_PARTS: Final[Mapping[str, type[BaseModel]]] = {
    "principal": AuditPrincipal,
    "source": AuditSource,
    "action": AuditAction,
    "resource": AuditResource,
}
# The keys that the journal adds to an event, so that a line of it can be explained unchanged.
_OF_THE_LINE: Final = frozenset({"time_ns", "observed_ns", "stream_id", "seq", "prev_hash"})

_LEVELS: Final = {
    Level.NONE: "not recorded, only counted",
    Level.METADATA: "recorded without detail, attributes and arguments_digest",
    Level.REQUEST: "recorded whole",
}
_RULES_OF_LOSS: Final = {
    OnLoss.OPEN: "when it cannot be recorded, the application continues, and the loss is counted and reported",
    OnLoss.CLOSED: "when it cannot be recorded, AuditUnavailable is raised",
}
_BEGINS: Final = "an operation() begins with an event of its own, and does not run if that cannot be recorded"
_BEGINS_NOT: Final = "an operation() is recorded once, when it ends"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision on an event, with the reason.

    `begins`: an operation with this event is also recorded before it runs.
    """

    facts: Facts
    policy: Policy | None
    rule: Rule | None
    is_dropped_read: bool
    decision: Decision
    begins: bool

    def as_text(self) -> str:
        """Return the explanation for people."""
        level, on_loss, _, tags = self.decision
        rows = [("event", self._event()), ("rule", self._rule()), ("level", f"{level}: {_LEVELS[level]}")]
        if self.decision.keep:
            rows.append(("on_loss", f"{on_loss}: {_RULES_OF_LOSS[on_loss]}"))
        if tags:
            rows.append(("tags", ", ".join(tags)))
        rows.append(("operation", _BEGINS if self.begins else _BEGINS_NOT if self.decision.keep else _LEVELS[level]))
        return "\n".join(f"{name:<9}  {escaped(text)}" for name, text in rows)

    def as_json(self) -> str:
        """Return the explanation as JSON."""
        level, on_loss, _, tags = self.decision
        return shown_json(
            {
                "policy": self.policy.path if self.policy is not None else None,
                "policy_hash": self.policy.sha256 if self.policy is not None else None,
                "rule": _rule_as_json(self.rule) if self.rule is not None else None,
                "log_successful_reads": not self.is_dropped_read,
                "keep": self.decision.keep,
                "level": level,
                "on_loss": on_loss,
                "tags": list(tags),
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
    """Return the decision on the event with these settings and their policy.

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
    """Return the event in a file that holds exactly one JSON object, such as a line of a journal.

    Raises:
        ConfigError: it holds something else; the message shows no value of it.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8, or brackets in brackets
        place = f"{name}:{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else name
        raise ConfigError(
            f"{place}: expected one event as JSON, got something else; give one object, as in a line"
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
    """Yield the values that the event does not keep as given, because a service would change them."""
    for name, value in given.items():
        if name not in taken:
            continue  # one that the journal adds
        if isinstance(value, dict) and isinstance(taken[name], dict) and name != "attributes":
            yield from _changed(value, taken[name], f"{at}.{name}")
        elif value != taken[name]:
            yield f"{at}.{name}", value


def _unknown(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the fields that would be ignored, although their author thinks that the policy sees them."""
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


_OF_MEMORY = (table.QUEUE_BYTES,)
_OF_DISKS = (table.RETENTION_DAYS, table.RETENTION_BYTES)  # in memory what is delivered is removed at once

_INTRODUCTION = """\
# Settings

<!-- Made by `otel-audit config --markdown > docs/settings.md` from the table in otel_audit/settings/. -->

See what is in force, and where each value came from:

```sh
otel-audit config
```

A setting is looked for in this order: code (`configure(batch_count=100)`), the environment, the YAML file named by
`OTEL_AUDIT_CONFIG`, OTel's own variable where one is listed, the default. An empty variable counts as not set. A value
that is not allowed, or an unknown `OTEL_AUDIT_*` name, stops start-up with a message that lists the valid ones.

The YAML file is flat. Its keys are the names of the settings, and its values are written as in the environment. Sizes
may end in KiB, MiB or GiB:

```yaml
directory: /var/lib/otel-audit/shop
export: [otlp, jsonl]
on_loss: closed
segment_bytes: 16 MiB
headers:
  authorization: Bearer abc
```
"""

_OTLP_INTRODUCTION = """
## OTLP

`OTEL_EXPORTER_OTLP_LOGS_*` wins over `OTEL_EXPORTER_OTLP_*`. The variables mean what they mean for OTel's official
Python exporters, and are read when `export` has `otlp`. Code and file use the names below.
"""

_DIFFERENCES = """
## Differences from the official exporters

* Start-up stops at values that they warn about, ignore, or fail with at the first export: a header that cannot be
  parsed, an unknown compression or protocol, a missing certificate, a client key without a certificate, a URL without a
  host, a base URL with a query, a gRPC endpoint with a scheme other than `http` or `https`.
* A time-out over 600 s is refused. The specification counts milliseconds and the Python exporters count seconds, so
  `OTEL_EXPORTER_OTLP_TIMEOUT=10000` was hardly meant to be three hours.
* `OTEL_BLRP_EXPORT_TIMEOUT`, which the SDK does not use, is the time-out when no `OTEL_EXPORTER_OTLP_*` one is set.
* Over gRPC, an empty variable counts as not set, compression `none` is known, and each certificate variable falls back
  to its general one on its own, as over HTTP.
* A header that is set is sent. Neither `.netrc` nor a user in the URL replaces an `authorization` header.
* Headers given in code replace those of the environment; the two are not merged.

## Variables of OTel that are ignored

When one of them is set, a notice on stderr says so once.

| variable | why |
|---|---|
"""


@click.command()
@click.option("--markdown", is_flag=True, help="Print docs/settings.md: every setting there is.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings in force as one JSON object.")
@click.option(
    "--explain",
    "event",
    type=GivenFile(),
    metavar="EVENT.json",
    help="Print which rule of the policy this event meets, and what follows. - is stdin.",
)
def config(markdown: bool, as_json: bool, event: BinaryIO | None) -> None:
    """Print each setting in force and where it came from. Secrets are masked."""
    if markdown:
        click.echo(settings_markdown(), nl=False)
        return
    try:
        settings = Settings.load(os.environ)
        if settings.policy is not None:
            read_policy(settings.policy)
        Rules.of(settings)  # a wrong key or policy stops the start, as a wrong setting does
        said = (
            explained(event_of_json(event.read(), getattr(event, "name", "stdin")), settings)
            if event is not None
            else None
        )
    except ConfigError as error:
        click.echo(f"otel-audit config: {escaped(str(error))}", err=True)
        sys.exit(WRONG_USAGE)
    if said is not None:
        click.echo(said.as_json() if as_json else said.as_text())
    else:
        click.echo(_as_json(settings) if as_json else _as_text(settings))


def settings_markdown() -> str:
    """Return the text of docs/settings.md."""
    ignored = "".join(f"| `{name}` | {why} |\n" for name, why in IGNORED_VARIABLES.items())
    otlp = _OTLP_INTRODUCTION + _markdown(OTLP_TABLE)
    return f"{_INTRODUCTION}\n## Core\n{_markdown(CORE_TABLE)}{otlp}{_DIFFERENCES}{ignored}"


def _markdown(settings: Iterable[Setting[object]]) -> str:
    """Return a section for each setting: its texts are too long for the cells of a table."""
    return "".join(map(_section, settings))


def _section(setting: Setting[object]) -> str:
    variables = [f"`{variable.name}`" for variable in setting.variables]
    variables += [_fallback_words(setting, variable.name) for variable in setting.fallbacks]
    has_unit = setting.unit and not setting.default_text
    default = f"{setting.default_words} {setting.unit}" if has_unit else setting.default_words
    return f"""
### {setting.name}

{_escaped(setting.doc)}

* Variable: {", ".join(variables)}
* Value: {setting.kind.expected}
* Default: {_escaped(default)}
* Why this default: {_escaped(setting.reason)}.
"""


def _fallback_words(setting: Setting[object], name: str) -> str:
    kind = next(variable.kind for variable in setting.fallbacks if variable.name == name)
    return f"and for the default `{name}`" + (f" ({kind.expected})" if kind is not None else "")


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("~", "\\~")


def _as_text(settings: Settings) -> str:
    rows = [(setting.name, *_text_cells(settings, setting)) for setting in CORE_TABLE + OTLP_TABLE]
    name_width = max(len(name) for name, _, _ in rows)
    value_width = min(48, max(len(value) for _, value, _ in rows))
    lines = [f"{name:<{name_width}}  {value:<{value_width}}  {source}" for name, value, source in rows]
    lines += [f"ignored: {name}: {IGNORED_VARIABLES[name]}" for name in settings.ignored]
    lines += [finding.says for finding in instrument_findings(settings, os.environ)]
    return "\n".join(map(escaped, lines))


def _text_cells(settings: Settings, setting: Setting[object]) -> tuple[str, str]:
    if setting.name not in settings.sources:
        return "-", "not used: export has no otlp" if settings.otlp is None else "not used: only for grpc"
    value = _value(settings, setting)
    if value is None or value == ():
        shown = (setting.default_text if value == setting.default else "") or "none"
    else:
        shown = _shown(settings, setting) + (f" {setting.unit}" if setting.unit else "")
    unused = _OF_DISKS if settings.durability is Durability.MEMORY else _OF_MEMORY
    note = f"; not used: durability is {settings.durability}" if setting in unused else ""
    return shown, f"{settings.sources[setting.name]}{note}"


def _as_json(settings: Settings) -> str:
    rows = {setting.name: _json_row(settings, setting) for setting in CORE_TABLE + OTLP_TABLE}
    return shown_json(
        {
            "service_name": settings.service_name,
            "settings": rows,
            "ignored": list(settings.ignored),
            "instrument": [finding.says for finding in instrument_findings(settings, os.environ)],
        }
    )


def _json_row(settings: Settings, setting: Setting[object]) -> Mapping[str, object]:
    source = settings.sources.get(setting.name)
    value = None if source is None else _value(settings, setting)
    is_plain = setting.unit != "octal" and (value is None or isinstance(value, bool | int | float))
    return {
        "value": value if is_plain else _shown(settings, setting),
        "unit": setting.unit or None,
        "origin": source.origin if source is not None else None,
        "where": (source.where or None) if source is not None else None,
        "variables": [variable.name for variable in (*setting.variables, *setting.fallbacks)],
    }


def _shown(settings: Settings, setting: Setting[object]) -> str:
    value = _value(settings, setting)
    if setting.unit == "octal" and isinstance(value, int):
        return f"{value:04o}"
    return setting.shown(value)


def _value(settings: Settings, setting: Setting[object]) -> object:
    """Return the effective value; for the settings of OTLP, the one in `settings.otlp`."""
    owner: Settings | OtlpSettings | None = settings.otlp if setting in OTLP_TABLE else settings
    return getattr(owner, setting.name, None)
