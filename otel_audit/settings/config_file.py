"""The YAML file of settings: flat, keys are the names of settings, every value with its line."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from otel_audit.errors import ConfigError
from otel_audit.settings.names import known_names

__all__ = ["CONFIG_VARIABLE", "FileValue", "read_config_file"]

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
