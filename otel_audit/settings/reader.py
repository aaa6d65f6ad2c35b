"""Read each setting from code, the environment and a YAML file, decide which value wins, and explain a wrong one.

The file is flat. Its keys are the names of settings, and every value knows its line.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from otel_audit.errors import ConfigError
from otel_audit.settings.setting import (
    PREFIX,
    Kind,
    Mismatch,
    Origin,
    Provenance,
    Setting,
    known_names,
    unknown_variables,
)
from otel_audit.settings.yaml_file import YamlFile, is_list, is_mapping, is_nothing, is_text

if TYPE_CHECKING:
    import yaml

__all__ = ["CONFIG_VARIABLE", "FileValue", "Reader", "read_config_file"]


CONFIG_VARIABLE = "OTEL_AUDIT_CONFIG"


@dataclass(frozen=True, slots=True)
class FileValue:
    """A value as written in the file, and `file:line:column`.

    Scalars stay texts, since `file_mode: 600` is not decimal.
    """

    given: str | list[str] | dict[str, str] = field(repr=False)  # headers hold tokens
    where: str


def read_config_file(path: str, names: Collection[str]) -> dict[str, FileValue]:
    """Return the settings in the file, by name. Keys without a value are left out.

    Raises:
        ConfigError: it is not a readable file of UTF-8 YAML with one flat mapping, or a key is unknown or given twice.
    """
    file = YamlFile.read(path, CONFIG_VARIABLE)
    root = file.root()
    if root is None or is_nothing(root):  # the latter is `---` with nothing after it
        return {}
    given = file.mapping(root, "$", names, "`name: value` lines")
    return {
        name: FileValue(_value(file, name, node), file.where(key))
        for name, (key, node) in given.items()
        if not is_nothing(node)
    }


def _value(file: YamlFile, name: str, node: yaml.Node) -> str | list[str] | dict[str, str]:
    if is_text(node):
        return str(node.value)
    if is_list(node) and all(map(is_text, node.value)):
        return [str(item.value) for item in node.value]
    if is_mapping(node) and all(is_text(part) for pair in node.value for part in pair):
        return {str(key.value): str(value.value) for key, value in node.value}
    raise file.error(node, f"$.{name}", "a plain value, a list or names with values", "nesting")


T = TypeVar("T")


class Reader(msgspec.Struct, frozen=True):
    """Reads each setting once, in the order code, its variables, file, OTel's fallback variables, default.

    A variable that is empty, a `None` in code and a key without a value in the file count as not given.
    `sources` grows with each setting that is read.

    Source: OTel specification, "Environment variable specification": an empty value is the same as unset.
    """

    environ: Mapping[str, str]
    overrides: Mapping[str, object]
    file: Mapping[str, FileValue]
    sources: dict[str, Provenance] = msgspec.field(default_factory=dict)

    @classmethod
    def open(
        cls, environ: Mapping[str, str], overrides: Mapping[str, object], table: Collection[Setting[object]]
    ) -> Reader:
        """Return a reader for these places, in which no name is unknown.

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
        """Return the effective value, parsed. Afterwards its source is in `sources`.

        Raises:
            ConfigError: the value that wins is not allowed. Lower ones are not examined.
        """
        for given, kind, source in self._candidates(setting):
            self.sources[setting.name] = source
            value = self._parsed(setting, kind, given)
            if value is not None:
                return value
        self.sources[setting.name] = Provenance(Origin.DEFAULT)
        return setting.default

    def is_given(self, setting: Setting[object], *origins: Origin) -> bool:
        """Return True if one of `origins` gives this setting a value. Nothing is parsed."""
        return any(source.origin in origins for _, _, source in self._candidates(setting))

    def error(self, setting: Setting[object], given: object, expected: str, remedy: str = "") -> ConfigError:
        """Return the error for a value that was read: what was expected, what was found, where, and the remedy."""
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

    def _candidates(self, setting: Setting[T]) -> Iterator[tuple[object, Kind[T], Provenance]]:
        if (given := self.overrides.get(setting.name)) is not None:
            yield given, setting.kind, Provenance(Origin.CODE)
        for variable in setting.variables:
            if text := self.environ.get(variable.name):
                yield text, variable.kind or setting.kind, Provenance(Origin.ENVIRONMENT, variable.name)
        if in_file := self.file.get(setting.name):
            yield in_file.given, setting.kind, Provenance(Origin.FILE, in_file.where)
        for variable in setting.fallbacks:
            if text := self.environ.get(variable.name):
                yield text, variable.kind or setting.kind, Provenance(Origin.ENVIRONMENT, variable.name)


def _remedy(setting: Setting[object], source: Provenance) -> str:
    if source.where in {variable.name for variable in setting.fallbacks}:
        return f"correct it, or set {setting.variables[0].name}, which wins over it"
    return f"correct it, or leave it out for the default: {setting.default_words}"


def _refuse_unknown_variables(environ: Mapping[str, str], table: Collection[Setting[object]]) -> None:
    ours = [variable.name for setting in table for variable in setting.variables if variable.name.startswith(PREFIX)]
    names = [CONFIG_VARIABLE, *ours]
    if unknown := unknown_variables(environ, names):
        raise ConfigError(f"{', '.join(unknown)}: unknown setting (environment); {known_names(unknown[0], names)}")
