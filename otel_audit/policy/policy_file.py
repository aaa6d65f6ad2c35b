"""The file of a policy: YAML, read once, and strict; what is wrong in it is told with line and column."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import yaml

from otel_audit.errors import ConfigError
from otel_audit.policy.decisions import CONDITIONS, Level, Rule
from otel_audit.settings import OnLoss

__all__ = ["POLICY_VARIABLE", "Policy", "read_policy"]

E = TypeVar("E", bound=StrEnum)

POLICY_VARIABLE: Final = "OTEL_AUDIT_POLICY"

_YAML: Final = "tag:yaml.org,2002:"
_SHOWN_CHARS: Final = 80


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a file in their order. `sha256`: of the bytes of the file, in hex."""

    path: str
    sha256: str
    rules: tuple[Rule, ...]


def read_policy(path: str | Path) -> Policy:
    """The policy in a file.

    Raises:
        ConfigError: it cannot be read, is not YAML in UTF-8, or has a key or value that is not allowed.
    """
    path = str(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{POLICY_VARIABLE}: expected the path of a readable policy file, got {path!r}: {error.strerror}; "
            "correct the path, or leave it out"
        ) from error
    return Policy(path, hashlib.sha256(content).hexdigest(), _Reading(path).rules(_root(path, content)))


def _root(path: str, content: bytes) -> yaml.Node:
    try:
        root = yaml.compose(content.decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        line, column = _place_of(before, len(before))
        raise ConfigError(f"{path}:{line}:{column}: expected UTF-8, got byte 0x{content[error.start]:02x}") from None
    except yaml.reader.ReaderError as error:
        line, column = _place_of(content.decode("utf-8-sig"), error.position)
        raise ConfigError(
            f"{path}:{line}:{column}: expected YAML, got the character U+{error.character:04X}, which it does not allow"
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else path
        raise ConfigError(f"{place}: expected YAML, got: {error.problem or error.context}") from None
    except RecursionError:
        raise ConfigError(f"{path}: expected a list of rules, got nesting without an end") from None
    if root is None:
        raise ConfigError(f"{path}:1:1: expected `rules:` and a list of rules, got an empty file")
    return root


def _place_of(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


class _Reading:
    """The reading of one file: nodes of YAML, each with its place, to rules."""

    def __init__(self, path: str) -> None:
        self._path = path

    def rules(self, root: yaml.Node) -> tuple[Rule, ...]:
        top = self._mapping(root, "$", ("rules",))
        if "rules" not in top:
            raise self._error(root, "$", "the key rules", "none", "write `rules:` and a list of rules under it")
        nodes = top["rules"]
        if not isinstance(nodes, yaml.SequenceNode):
            raise self._error(nodes, "$.rules", "a list of rules", _what(nodes), "begin each rule with `- `")
        return tuple(self._rule(node, f"$.rules[{number}]") for number, node in enumerate(nodes.value))

    def _rule(self, node: yaml.Node, at: str) -> Rule:
        given = self._mapping(node, at, (*CONDITIONS, *_EFFECTS))
        conditions = {name: self._patterns(given[name], f"{at}.{name}") for name in CONDITIONS if name in given}
        effects = {name: read(self, given[name], f"{at}.{name}") for name, read in _EFFECTS.items() if name in given}
        level = self._level(given, effects, at)
        if level is Level.NONE and "on_loss" in effects:
            got = f"{effects['on_loss'].value!r} for one that is not"
            raise self._error(given["on_loss"], f"{at}.on_loss", "it for events that are kept", got, "leave it out")
        return Rule(
            line=node.start_mark.line + 1,
            column=node.start_mark.column + 1,
            conditions=conditions,
            level=level,
            on_loss=effects.get("on_loss"),
        )

    def _level(self, given: Mapping[str, yaml.Node], effects: Mapping[str, Any], at: str) -> Level | None:
        """The level that `keep` and `level` say together."""
        keeps: bool | None = effects.get("keep")
        level: Level | None = effects.get("level")
        if keeps is None or level is None:
            return Level.NONE if keeps is False else level
        if keeps == (level is Level.NONE):
            expected = "metadata or request" if keeps else "none"
            expected = f"{expected} with keep: {str(keeps).lower()}"
            raise self._error(given["level"], f"{at}.level", expected, repr(level.value), "leave one of the two out")
        return level

    def keep(self, node: yaml.Node, at: str) -> bool:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_YAML}bool" and node.value.lower() in ("true", "false"):
            return bool(node.value.lower() == "true")
        raise self._error(node, at, "true or false", _what(node))

    def level(self, node: yaml.Node, at: str) -> Level:
        return self._word(node, at, Level)

    def on_loss(self, node: yaml.Node, at: str) -> OnLoss:
        return self._word(node, at, OnLoss)

    def _word(self, node: yaml.Node, at: str, words: type[E]) -> E:
        if isinstance(node, yaml.ScalarNode) and node.value in list(words):
            return words(node.value)
        raise self._error(node, at, f"one of {', '.join(words)}", _what(node))

    def _patterns(self, node: yaml.Node, at: str) -> tuple[str, ...]:
        if not isinstance(node, yaml.SequenceNode):
            return (self._pattern(node, at),)
        if not node.value:
            raise self._error(node, at, "a word or a list of words", "an empty list", f"leave {at.split('.')[-1]} out")
        return tuple(self._pattern(item, f"{at}[{number}]") for number, item in enumerate(node.value))

    def _pattern(self, node: yaml.Node, at: str) -> str:
        # As it stands there, whatever YAML makes of it: `actor: 007` is no number. Only what is no text is no word.
        if not isinstance(node, yaml.ScalarNode) or node.tag == f"{_YAML}null":
            raise self._error(node, at, "a word, in which * stands for anything, or a list of such words", _what(node))
        return str(node.value)

    def _mapping(self, node: yaml.Node, at: str, names: Collection[str]) -> Mapping[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, at, f"the keys {', '.join(names)}", _what(node))
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name not in names:
                raise self._error(key, at, f"one of the keys {', '.join(names)}", _what(key))
            if name in found:
                raise self._error(key, f"{at}.{name}", "each key once", "it a second time", "remove one")
            found[name] = value
        return found

    def _error(self, node: yaml.Node, at: str, expected: str, got: str, remedy: str = "correct it") -> ConfigError:
        mark = node.start_mark
        return ConfigError(
            f"{self._path}:{mark.line + 1}:{mark.column + 1}: {at}: expected {expected}, got {got}; {remedy}"
        )


_EFFECTS: Final[Mapping[str, Callable[[_Reading, yaml.Node, str], Any]]] = MappingProxyType(
    {"keep": _Reading.keep, "level": _Reading.level, "on_loss": _Reading.on_loss}
)


def _what(node: yaml.Node) -> str:
    match node:
        case yaml.SequenceNode():
            return "a list"
        case yaml.MappingNode():
            return "a mapping"
        case yaml.ScalarNode(tag=tag) if tag == f"{_YAML}null":
            return "nothing"
    text = repr(str(node.value))
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
