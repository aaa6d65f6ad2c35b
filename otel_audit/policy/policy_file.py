"""Read the YAML file of a policy, once and strictly. An error names the line and column."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from otel_audit.errors import ConfigError
from otel_audit.policy.decisions import CONDITIONS, Level, Rule
from otel_audit.settings import OnLoss
from otel_audit.settings.yaml_file import YamlFile, is_list, is_nothing, is_text, kind_of, place_of

if TYPE_CHECKING:
    import yaml

__all__ = ["POLICY_VARIABLE", "Policy", "read_policy"]

E = TypeVar("E", bound=StrEnum)

POLICY_VARIABLE: Final = "OTEL_AUDIT_POLICY"

_BOOL: Final = "tag:yaml.org,2002:bool"
_SHOWN_CHARS: Final = 80
_TAG: Final = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_TAGS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of a file in their order. `sha256` is that of the bytes of the file, in hex."""

    path: str
    sha256: str
    rules: tuple[Rule, ...]


def read_policy(path: str | Path) -> Policy:
    """Return the policy in a file.

    Raises:
        ConfigError: it cannot be read, is not YAML in UTF-8, or has a key or value that is not allowed.
    """
    file = YamlFile.read(str(path), POLICY_VARIABLE)
    root = file.root()
    if root is None:
        raise ConfigError(f"{path}:1:1: expected `rules:` and a list of rules, got an empty file")
    return Policy(file.path, hashlib.sha256(file.content).hexdigest(), _Rules(file).of(root))


class _Rules:
    """Makes rules from the nodes of one file."""

    def __init__(self, file: YamlFile) -> None:
        self._mapping = file.mapping
        self._error = file.error

    def of(self, root: yaml.Node) -> tuple[Rule, ...]:
        top = self._mapping(root, "$", ("rules",), "the key rules")
        if "rules" not in top:
            raise self._error(root, "$", "the key rules", "none", "write `rules:` and a list of rules under it")
        _, nodes = top["rules"]
        if not is_list(nodes):
            raise self._error(nodes, "$.rules", "a list of rules", _shown(nodes), "begin each rule with `- `")
        return tuple(self._rule(node, f"$.rules[{number}]") for number, node in enumerate(nodes.value))

    def _rule(self, node: yaml.Node, at: str) -> Rule:
        names = (*CONDITIONS, *_EFFECTS)
        pairs = self._mapping(node, at, names, f"the keys {', '.join(names)}")
        given = {name: value for name, (_, value) in pairs.items()}
        conditions: dict[str, tuple[str, ...]] = {
            name: self._patterns(given[name], f"{at}.{name}") for name in CONDITIONS if name in given
        }
        effects = {name: read(self, given[name], f"{at}.{name}") for name, read in _EFFECTS.items() if name in given}
        level = self._level(given, effects, at)
        if level is Level.NONE and "on_loss" in effects:
            got = f"{effects['on_loss'].value!r} for one that is not"
            raise self._error(given["on_loss"], f"{at}.on_loss", "it for events that are kept", got, "leave it out")
        if level is Level.NONE and "tags" in effects:
            got = "them for one that is not"
            raise self._error(given["tags"], f"{at}.tags", "them for events that are kept", got, "leave them out")
        line, column = place_of(node)
        return Rule(
            line=line,
            column=column,
            conditions=conditions,
            level=level,
            on_loss=effects.get("on_loss"),
            tags=effects.get("tags", ()),
        )

    def _level(self, given: Mapping[str, yaml.Node], effects: Mapping[str, Any], at: str) -> Level | None:
        """Return the level that results from `keep` and `level`."""
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
        if is_text(node) and node.tag == _BOOL and node.value.lower() in ("true", "false"):
            return bool(node.value.lower() == "true")
        raise self._error(node, at, "true or false", _shown(node))

    def level(self, node: yaml.Node, at: str) -> Level:
        return self._word(node, at, Level)

    def on_loss(self, node: yaml.Node, at: str) -> OnLoss:
        return self._word(node, at, OnLoss)

    def tags(self, node: yaml.Node, at: str) -> tuple[str, ...]:
        items = node.value if is_list(node) else [node]
        if not 0 < len(items) <= _TAGS_MAX:
            raise self._error(node, at, f"1 to {_TAGS_MAX} words", f"{len(items)}", "leave out what is not needed")
        tags = [self._tag(item, f"{at}[{number}]" if is_list(node) else at) for number, item in enumerate(items)]
        for item, tag in zip(reversed(items), reversed(tags), strict=True):
            if tags.count(tag) > 1:
                raise self._error(item, at, "each word once", f"{tag!r} twice", "leave one out")
        return tuple(tags)

    def _tag(self, node: yaml.Node, at: str) -> str:
        if is_text(node) and _TAG.fullmatch(str(node.value)):
            return str(node.value)
        raise self._error(
            node, at, "a word of up to 32 of a-z, 0-9, . _ and -, which begins with a letter", _shown(node)
        )

    def _word(self, node: yaml.Node, at: str, words: type[E]) -> E:
        if is_text(node) and node.value in list(words):
            return words(node.value)
        raise self._error(node, at, f"one of {', '.join(words)}", _shown(node))

    def _patterns(self, node: yaml.Node, at: str) -> tuple[str, ...]:
        if not is_list(node):
            return (self._pattern(node, at),)
        if not node.value:
            raise self._error(node, at, "a word or a list of words", "an empty list", f"leave {at.split('.')[-1]} out")
        return tuple(self._pattern(item, f"{at}[{number}]") for number, item in enumerate(node.value))

    def _pattern(self, node: yaml.Node, at: str) -> str:
        # The text as written, whatever YAML makes of it: `actor: 007` is not a number.
        if not is_text(node) or is_nothing(node):
            raise self._error(node, at, "a word, in which * stands for anything, or a list of such words", _shown(node))
        return str(node.value)


_EFFECTS: Final[Mapping[str, Callable[[_Rules, yaml.Node, str], Any]]] = MappingProxyType(
    {"keep": _Rules.keep, "level": _Rules.level, "on_loss": _Rules.on_loss, "tags": _Rules.tags}
)


def _shown(node: yaml.Node) -> str:
    """Return a node for an error message. The words of a policy are no secrets."""
    if not is_text(node) or is_nothing(node):
        return kind_of(node)
    text = repr(str(node.value))
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
