"""From code, environment and file to one value a setting: who wins, and what a wrong value is told.

The YAML file of settings: flat, keys are the names of settings, every value with its line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from otel_audit.errors import ConfigError
from otel_audit.settings.setting import PREFIX, Kind, Mismatch, Origin, Setting, Source, known_names, unknown_variables

__all__ = ["CONFIG_VARIABLE", "FileValue", "Reader", "read_config_file"]


CONFIG_VARIABLE = "OTEL_AUDIT_CONFIG"
_NULL = "tag:yaml.org,2002:null"
_QUOTED = re.compile(r"'[^'<\\]{2,}'")  # not a token's kind, '<block end>', and not a character, '\\t'


@dataclass(frozen=True, slots=True)
class FileValue:
    """A value as it stands in the file, and `file:line`. Scalars stay texts: `file_mode: 600` is not decimal."""

    given: str | list[str] | dict[str, str] = field(repr=False)  # headers hold tokens
    where: str


def read_config_file(path: str, names: Collection[str]) -> dict[str, FileValue]:
    """The settings that the file gives, by name; keys without a value are left out.

    Raises:
        ConfigError: not a readable file of UTF-8 YAML, not one flat mapping, a key unknown or given twice.
    """
    root = _root(path)
    if root is None:
        return {}
    if isinstance(root, yaml.ScalarNode) and root.tag == _NULL:  # `---` and nothing behind it
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{_where(path, root)}: expected `name: value` lines, got {_what(root)}")
    values: dict[str, FileValue] = {}
    for key, node in root.value:
        name, where = str(key.value) if isinstance(key, yaml.ScalarNode) else _what(key), _where(path, key)
        if name not in names:
            raise ConfigError(f"{where}: unknown setting {name!r}; {known_names(name, names)}")
        if name in values:
            raise ConfigError(f"{where}: {name} is given twice, first at {values[name].where}; remove one")
        if node.tag != _NULL:
            values[name] = FileValue(_given(path, name, node), where)
    return values


def _root(path: str) -> yaml.Node | None:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{CONFIG_VARIABLE}: expected the path of a readable YAML file, got {path!r} (environment): {reason}; "
            "correct the path or unset the variable"
        ) from error
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise ConfigError(f"{path}: expected `name: value` lines, got brackets in brackets, too deep to read") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: expected YAML, got {_problem(error)}") from None


def _problem(error: yaml.YAMLError) -> str:
    """What was found, without a word of the file, which may be a token: `*abc` is an alias to YAML."""
    problem = getattr(error, "problem", None) or "a character that YAML does not allow"
    return _QUOTED.sub("'...'", problem.rpartition("found ")[2])


def _given(path: str, name: str, node: yaml.Node) -> str | list[str] | dict[str, str]:
    match node:
        case yaml.ScalarNode():
            return str(node.value)
        case yaml.SequenceNode() if all(isinstance(item, yaml.ScalarNode) for item in node.value):
            return [str(item.value) for item in node.value]
        case yaml.MappingNode() if all(isinstance(part, yaml.ScalarNode) for pair in node.value for part in pair):
            return {str(key.value): str(value.value) for key, value in node.value}
    raise ConfigError(f"{_where(path, node)}: {name}: expected a plain value, a list or names with values, got nesting")


def _where(path: str, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def _what(node: yaml.Node) -> str:
    match node:
        case yaml.SequenceNode():
            return "a list"
        case yaml.MappingNode():
            return "names with values"
    return "a single value"


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads each setting once, in the order code, its variables, file, OTel's fallback variables, default.

    A variable that is empty, a `None` in code and a key without a value in the file count as not given.
    `sources` grows with each setting that is read.

    Source: OTel specification, "Environment variable specification": an empty value is the same as unset.
    """

    environ: Mapping[str, str]
    overrides: Mapping[str, object]
    file: Mapping[str, FileValue]
    sources: dict[str, Source] = field(default_factory=dict)

    @classmethod
    def open(
        cls, environ: Mapping[str, str], overrides: Mapping[str, object], table: Collection[Setting[object]]
    ) -> Reader:
        """A reader of these places; no name in them is unknown.

        Raises:
            ConfigError: a name is unknown, or the file cannot be read.
        """
        names = [setting.name for setting in table]
        for name in overrides:
            if name not in names:
                raise ConfigError(f"{name}: unknown setting (code); {known_names(name, names)}")
        _refuse_unknown_variables(environ, table)
        path = environ.get(CONFIG_VARIABLE)
        return cls(environ, overrides, read_config_file(path, names) if path else {})

    def value(self, setting: Setting[T]) -> T:
        """The effective value, parsed. Its source is in `sources` from now on.

        Raises:
            ConfigError: the value that wins is not allowed. A lower one is not looked at.
        """
        for given, kind, source in self._candidates(setting):
            self.sources[setting.name] = source
            value = self._parsed(setting, kind, given)
            if value is not None:
                return value
        self.sources[setting.name] = Source(Origin.DEFAULT)
        return setting.default

    def is_given(self, setting: Setting[object], *origins: Origin) -> bool:
        """Whether one of `origins` gives this setting a value. Nothing is parsed."""
        return any(source.origin in origins for _, _, source in self._candidates(setting))

    def error(self, setting: Setting[object], given: object, expected: str, remedy: str = "") -> ConfigError:
        """What to raise for a value read from `sources`: expected, got, where, remedy."""
        source = self.sources[setting.name]
        label = source.where if source.origin is Origin.ENVIRONMENT else setting.name
        place = source.where if source.origin is Origin.FILE else source.origin.value
        remedy = remedy or _remedy(setting, source)
        return ConfigError(f"{label}: expected {expected}, got {setting.shown_given(given)} ({place}); {remedy}")

    def _parsed(self, setting: Setting[T], kind: Kind[T], given: object) -> T:
        try:
            return kind.parse(given)
        except Mismatch as mismatch:
            raise self.error(setting, given, kind.expected, str(mismatch)) from None

    def _candidates(self, setting: Setting[T]) -> Iterator[tuple[object, Kind[T], Source]]:
        if (given := self.overrides.get(setting.name)) is not None:
            yield given, setting.kind, Source(Origin.CODE)
        for variable in setting.variables:
            if text := self.environ.get(variable.name):
                yield text, variable.kind or setting.kind, Source(Origin.ENVIRONMENT, variable.name)
        if in_file := self.file.get(setting.name):
            yield in_file.given, setting.kind, Source(Origin.FILE, in_file.where)
        for variable in setting.fallbacks:
            if text := self.environ.get(variable.name):
                yield text, variable.kind or setting.kind, Source(Origin.ENVIRONMENT, variable.name)


def _remedy(setting: Setting[object], source: Source) -> str:
    if source.where in {variable.name for variable in setting.fallbacks}:
        return f"correct it, or set {setting.variables[0].name}, which wins over it"
    return f"correct it, or leave it out for the default: {setting.default_words}"


def _refuse_unknown_variables(environ: Mapping[str, str], table: Collection[Setting[object]]) -> None:
    ours = [variable.name for setting in table for variable in setting.variables if variable.name.startswith(PREFIX)]
    names = [CONFIG_VARIABLE, *ours]
    if unknown := unknown_variables(environ, names):
        raise ConfigError(f"{', '.join(unknown)}: unknown setting (environment); {known_names(unknown[0], names)}")
