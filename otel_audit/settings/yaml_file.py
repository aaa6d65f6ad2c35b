"""Read a YAML file strictly: nodes with line and column, and errors with their place.

An error about YAML itself repeats no word of the file, which may hold tokens: to YAML `*abc` is an alias.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from otel_audit.errors import ConfigError
from otel_audit.settings.setting import known_names

if TYPE_CHECKING:
    import yaml

__all__ = ["YamlFile", "is_list", "is_mapping", "is_nothing", "is_text", "kind_of", "place_of"]

_NULL = "tag:yaml.org,2002:null"
_GOT = re.compile(r"(?:but found|but got|found) ")  # what PyYAML writes between what it expected and what there is
_QUOTED = re.compile(r"'[^'<\\]{2,}'")  # not a token's kind, '<block end>', and not a character, '\\t'


@dataclass(frozen=True, slots=True)
class YamlFile:
    """The content of a file. Nothing in it has been parsed yet."""

    path: str
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: str, variable: str) -> YamlFile:
        """Return the file at `path`, which `variable` names.

        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            return cls(path, Path(path).read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no path can hold that character"
            raise ConfigError(
                f"{variable}: expected the path of a readable YAML file, got {path!r}: {reason}; "
                "correct the path, or leave it out"
            ) from error

    def root(self) -> yaml.Node | None:
        """Return the node that holds all others; None for an empty file.

        Raises:
            ConfigError: the content is not one document of YAML in UTF-8.
        """
        import yaml  # not at the top, since it takes 15 ms to load and most services have no such file

        try:
            return yaml.compose(self.content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            before = self.content[: error.start].decode("utf-8-sig")
            where = self._where(before, len(before))
            got = f"byte 0x{self.content[error.start]:02x}"
            raise ConfigError(f"{where}: expected UTF-8, got {got}; save the file as UTF-8") from None
        except yaml.reader.ReaderError as error:
            where = self._where(self.content.decode("utf-8-sig"), error.position)
            raise ConfigError(
                f"{where}: expected YAML, got the character U+{error.character:04X}, which it does not allow; remove it"
            ) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else self.path
            problem = _QUOTED.sub("'...'", _GOT.split(error.problem or error.context or "")[-1])
            remedy = "indent with spaces" if "\\t" in (error.problem or "") else "correct it there or just before"
            raise ConfigError(f"{where}: expected YAML, got {problem}; {remedy}") from None
        except RecursionError:
            said = f"{self.path}: expected YAML, got brackets in brackets, too deep to read"
            raise ConfigError(f"{said}; use fewer") from None

    def mapping(
        self, node: yaml.Node, at: str, names: Collection[str], expected: str
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the keys of a mapping, each one of `names`, with their nodes and those of their values.

        Raises:
            ConfigError: it is not a mapping, which is `expected`, or a key is unknown or appears twice.
        """
        if not is_mapping(node):
            raise self.error(node, at, expected, kind_of(node))
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = str(key.value) if is_text(key) else kind_of(key)
            if name not in names:
                raise ConfigError(f"{self.where(key)}: {at}: unknown key {name!r}; {known_names(name, names)}")
            if name in found:
                got = f"it a second time, first in line {place_of(found[name][0])[0]}"
                raise self.error(key, f"{at}.{name}", "each key once", got, "remove one")
            found[name] = (key, value)
        return found

    def error(self, node: yaml.Node, at: str, expected: str, got: str, remedy: str = "correct it") -> ConfigError:
        """Return the error for a node. `at` is its path in the file, such as `$.rules[0]`."""
        return ConfigError(f"{self.where(node)}: {at}: expected {expected}, got {got}; {remedy}")

    def where(self, node: yaml.Node) -> str:
        """Return `file:line:column` of a node."""
        line, column = place_of(node)
        return f"{self.path}:{line}:{column}"

    def _where(self, text: str, position: int) -> str:
        before = text[:position]
        return f"{self.path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def place_of(node: yaml.Node) -> tuple[int, int]:
    """Return line and column of a node, counted from 1."""
    return node.start_mark.line + 1, node.start_mark.column + 1


def is_text(node: yaml.Node) -> TypeGuard[yaml.ScalarNode]:
    """Return True if a node is a single value.

    It is the text as written in the file, not the value that YAML makes of it.
    """
    import yaml

    return isinstance(node, yaml.ScalarNode)


def is_list(node: yaml.Node) -> TypeGuard[yaml.SequenceNode]:
    """Return True if a node is a list."""
    import yaml

    return isinstance(node, yaml.SequenceNode)


def is_mapping(node: yaml.Node) -> TypeGuard[yaml.MappingNode]:
    """Return True if a node is a mapping."""
    import yaml

    return isinstance(node, yaml.MappingNode)


def is_nothing(node: yaml.Node) -> bool:
    """Return True if a key has no value, or `~`."""
    return is_text(node) and node.tag == _NULL


def kind_of(node: yaml.Node) -> str:
    """Return the kind of a node in words, for an error that must not show its content."""
    if is_nothing(node):
        return "nothing"
    return "a list" if is_list(node) else "a mapping" if is_mapping(node) else "a single value"
