"""`otel-audit config`: every setting in force and where it came from; and docs/settings.md from the same table."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import click

from otel_audit.cli.config_explain import event_of_json, explained
from otel_audit.diagnosis import instrument_findings
from otel_audit.errors import ConfigError
from otel_audit.policy import read_policy
from otel_audit.redaction import Rules
from otel_audit.settings import Durability, OtlpSettings, Setting, Settings, table
from otel_audit.settings.otlp import OTLP_TABLE
from otel_audit.settings.settings import IGNORED_VARIABLES
from otel_audit.settings.table import CORE_TABLE
from otel_audit.terminal import escaped, shown_json

__all__ = ["config", "settings_markdown"]

_WRONG_USAGE = 2
# Which journal has an eye for what.
_OF_MEMORY = (table.QUEUE_SIZE, table.QUEUE_BYTES)
_OF_FILES = (
    table.DIRECTORY,
    table.SEGMENT_BYTES,
    table.SEGMENT_AGE_S,
    table.RETENTION_DAYS,
    table.RETENTION_BYTES,
    table.DIRECTORY_BYTES,
    table.FREE_BYTES,
)

_INTRODUCTION = """\
# Settings

<!-- Made by `otel-audit config --markdown > docs/settings.md` from the table in otel_audit/settings/. -->

A setting is looked for in this order: code (`configure(batch_count=100)`), environment, the YAML file named by
`OTEL_AUDIT_CONFIG`, OTel's own variable where one is listed, default. An empty variable counts as not set. A value that
is not allowed, and an unknown `OTEL_AUDIT_*` name, stops start-up and says the valid ones. See what is in force, and
where each value came from:

```sh
otel-audit config
```

The YAML file is flat; its keys are the names in the first column, its values are written as in the environment. Sizes
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

`OTEL_EXPORTER_OTLP_LOGS_*` wins over `OTEL_EXPORTER_OTLP_*`. They mean what they mean for OTel's official Python
exporters, and are read when `export` has `otlp`. In code and file they have the names of the first column.

"""

_DIFFERENCES = """
Different from the official exporters, on purpose:

* A value that they warn of, ignore, or fail with at the first export stops start-up: a header that cannot be parsed, an
  unknown compression or protocol, a certificate that is not there, a client key without a certificate, a URL without a
  host, a base URL with a query, a gRPC endpoint with another scheme than `http` or `https`.
* A time-out over 600 s is refused: the specification counts milliseconds, the Python exporters count seconds, and
  `OTEL_EXPORTER_OTLP_TIMEOUT=10000` was hardly meant to be three hours.
* `OTEL_BLRP_EXPORT_TIMEOUT`, which the SDK does not use, is the time-out when no `OTEL_EXPORTER_OTLP_*` one is set.
* Over gRPC an empty variable counts as not set, compression `none` is known, and each certificate variable falls back
  to its general one on its own, as over HTTP.
* A header that is set is sent: neither `.netrc` nor a user in the URL replaces an `authorization` header.
* Headers given in code replace those of the environment; they are not merged.

## Variables of OTel that are ignored

Said once on stderr when one is set.

| variable | why |
|---|---|
"""


@click.command()
@click.option("--markdown", is_flag=True, help="Print docs/settings.md: every setting there is.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings in force as one JSON object.")
@click.option(
    "--explain",
    "event",
    type=click.File("rb"),
    metavar="EVENT.json",
    help="Print which rule of the policy this event meets, and what follows. - is stdin.",
)
def config(markdown: bool, as_json: bool, event: BinaryIO | None) -> None:
    """Print each setting in force, and where it came from. Secrets are masked."""
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
        sys.exit(_WRONG_USAGE)
    if said is not None:
        click.echo(said.as_json() if as_json else said.as_text())
    else:
        click.echo(_as_json(settings) if as_json else _as_text(settings))


def settings_markdown() -> str:
    """The text of docs/settings.md."""
    ignored = "".join(f"| `{name}` | {why} |\n" for name, why in IGNORED_VARIABLES.items())
    otlp = _OTLP_INTRODUCTION + _markdown_table(OTLP_TABLE)
    return _INTRODUCTION + _markdown_table(CORE_TABLE) + otlp + _DIFFERENCES + ignored


def _markdown_table(rows: Iterable[Setting[object]]) -> str:
    head = "| setting | variable | value | default | what it is, and why this default |\n|---|---|---|---|---|\n"
    return head + "".join(_markdown_row(setting) for setting in rows)


def _markdown_row(setting: Setting[object]) -> str:
    variables = [f"`{variable.name}`" for variable in setting.variables]
    variables += [_fallback_words(setting, variable.name) for variable in setting.fallbacks]
    has_unit = setting.unit and not setting.default_text
    default = f"{setting.default_words} {setting.unit}" if has_unit else setting.default_words
    cells = (
        f"`{setting.name}`",
        "<br>".join(variables),
        setting.kind.expected,
        _escaped(default),
        f"{_escaped(setting.doc)} *Default: {_escaped(setting.reason)}.*",
    )
    return f"| {' | '.join(cells)} |\n"


def _fallback_words(setting: Setting[object], name: str) -> str:
    kind = next(variable.kind for variable in setting.fallbacks if variable.name == name)
    return f"default from `{name}`" + (f" ({kind.expected})" if kind is not None else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("~", "\\~")


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
    unused = _OF_FILES if settings.durability is Durability.MEMORY else _OF_MEMORY
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
    """The effective value: of OTLP's rows, the one in `settings.otlp`."""
    owner: Settings | OtlpSettings | None = settings.otlp if setting in OTLP_TABLE else settings
    return getattr(owner, setting.name, None)
