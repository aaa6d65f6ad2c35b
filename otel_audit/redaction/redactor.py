"""Remove secrets from an event, apply the user's rules, and cut what is too large.

An event comes as a plain dict in the order of `AuditEvent`, unset fields left out. In the common case there is nothing
to do, and two cheap checks (`is_clean`, `attributes_are_clean`) find that out. `clean` does the rest and never fails.
`Rules` holds what a user adds to the built-in patterns and names: which attributes are kept, what is left of the
client, and whether names become pseudonyms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

import msgspec
import re2

from otel_audit.errors import ConfigError
from otel_audit.event_schema import FIELDS
from otel_audit.json_values import INT64_MAX, INT64_MIN, TOO_MANY, JsonValues, free_key
from otel_audit.redaction.caps import Address, Caps, Findings, cut_key, fit_line, json_text, path_of
from otel_audit.redaction.names import SecretNames, is_secret_name
from otel_audit.redaction.pseudonyms import Pseudonyms, read_keyring, shortened_attributes, shortened_source
from otel_audit.redaction.screen import EventTexts, Screen, Settled, SplitSecret, standard_screen
from otel_audit.redaction.values import REDACTED, SecretPattern, is_card_integer
from otel_audit.settings import Settings
from otel_audit.settings.privacy import ClientInfo, pattern_fault
from otel_audit.threads import FORKS_WAIT

__all__ = ["Redactor", "Rules", "rewritten_event", "rewritten_field"]


_REDACTED = REDACTED.encode()


class Rules(msgspec.Struct, frozen=True):
    """The rules of a user. Its fields are the settings of docs/settings.md, except for the keys, which are read here.

    Raises:
        ConfigError: a pattern is wrong; the message names it and the place.
    """

    redact_patterns: tuple[str, ...] = ()
    redact_names: tuple[str, ...] = ()
    keep_names: tuple[str, ...] = ()
    keep_attributes: tuple[str, ...] | None = None
    client_info: ClientInfo = ClientInfo.KEEP
    pseudonyms: Pseudonyms | None = None

    def __post_init__(self) -> None:
        for index, pattern in enumerate(self.redact_patterns):
            if fault := pattern_fault(pattern):
                raise ConfigError(f"Rules.redact_patterns[{index}]: expected an RE2 pattern, got {pattern!r}: {fault}")

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """Return the rules that the settings ask for.

        Raises:
            ConfigError: the file of keys cannot be used.
        """
        return cls(
            redact_patterns=settings.redact_patterns,
            redact_names=settings.redact_names,
            keep_names=settings.keep_names,
            keep_attributes=settings.keep_attributes,
            client_info=settings.client_info,
            pseudonyms=read_keyring(settings.pseudonym_keys) if settings.pseudonym_keys is not None else None,
        )

    @property
    def rewrite(self) -> bool:
        """Return True if the rules may change an event that holds no secret."""
        return self.rewrite_more or self.pseudonyms is not None

    @property
    def rewrite_more(self) -> bool:
        """Return True if the rules may change more of it than names."""
        return self.keep_attributes is not None or self.client_info is not ClientInfo.KEEP

    def screen(self) -> Screen:
        """Return the screen for the secrets of the table and of `redact_patterns`."""
        if not self.redact_patterns:
            return standard_screen()
        return Screen(SecretPattern("own", pattern, "the user's", _is_not_redacted) for pattern in self.redact_patterns)

    def keeps_attribute(self, key: str) -> bool:
        """Return True if an attribute with this key is recorded at all."""
        return self.keep_attributes is None or any(_matches(key, name) for name in self.keep_attributes)


def _matches(key: str, name: str) -> bool:
    return key.startswith(name[:-1]) if name.endswith("*") else key == name


def _is_not_redacted(value: bytes) -> bool:
    """Return True if the text is not empty and not part of the mark of an earlier removal."""
    return value not in _REDACTED


def rewritten_field(name: str, value: Any, rules: Rules, removed: set[Address]) -> Any:
    """Return a field of the model with pseudonyms and a shortened client. No attribute is removed yet."""
    if name == "principal" and rules.pseudonyms is not None:
        return rules.pseudonyms.of_principal(value)
    if name == "source":
        return shortened_source(value, rules.client_info, removed)
    if name == "attributes" and type(value) is dict:
        return shortened_attributes(value, rules.client_info, removed)
    return value


def rewritten_event(fields: Mapping[str, Any], rules: Rules, removed: set[Address]) -> dict[str, Any]:
    """Return an event that holds no secret, with all changes of the rules. `fields` is not changed."""
    event = {name: rewritten_field(name, value, rules, removed) for name, value in fields.items()}
    attributes = event.get("attributes")
    if rules.keep_attributes is not None and type(attributes) is dict:
        event["attributes"] = {key: value for key, value in attributes.items() if rules.keeps_attribute(key)}
        removed |= {("attributes", key) for key in attributes if key not in event["attributes"]}
    return event


MODEL_FIELDS: Final = frozenset(FIELDS)
_LISTS: Final = ("redacted", "truncated")
_PARTS: Final = MODEL_FIELDS - {"attributes"}  # a bounded shape
_PLAIN_FIELDS: Final = MODEL_FIELDS.difference(_LISTS)
_NUMBERS: Final = frozenset({"duration_ms", "status_code", "trace_flags"})
_NUMBER_TYPES: Final = (int, float, type(None))
# Made by us, and not screened as long as they have this form, since a number or hash may look like anything.
_GENERATED: Final = frozenset(
    [("event_id",), ("timestamp",), ("trace_id",), ("span_id",), ("action", "arguments_digest")]
)
_GENERATED_SHAPE: Final = re2.compile(r"[0-9a-fA-FTZ:.+-]*")
_GENERATED_CHARS: Final = 64

_ESCAPED_BYTES: Final = 6  # the longest form of a character in JSON: \u0000
_FRAME_BYTES: Final = 16 * 1024  # names, punctuation, numbers and generated values of an event that is not screened
_PART_FIELDS: Final = 8  # more than a part of the model has: the cap on attributes must not cost the principal's roles
_MAX_PLAIN_VALUES: Final = 256
_LARGE: Final = 10**12  # no smaller number is a card's


class Redactor:
    """Remove secrets from events and cut what exceeds the caps.

    It holds no state of an event, and is safe in threads.
    """

    __slots__ = ("_caps", "_find", "_is_secret_name", "_most_plain_texts", "_plain_chars", "_rules", "_screen")

    def __init__(self, *, caps: Caps = Caps(), rules: Rules = Rules()) -> None:  # noqa: B008 - frozen: one for all is right
        self._caps = caps
        self._rules = rules
        self._screen = rules.screen()
        self._find = self._screen.find
        own = rules.redact_names or rules.keep_names
        self._is_secret_name = SecretNames(rules.redact_names, rules.keep_names).is_secret if own else is_secret_name
        fitting = (caps.event_bytes - _FRAME_BYTES) // _ESCAPED_BYTES
        self._most_plain_texts = caps.list_items
        self._plain_chars = min(caps.text_chars, caps.detail_chars, fitting)

    @property
    def pseudonym_of(self) -> Callable[[str], str] | None:
        """Return the function that makes the pseudonym of a name, or None if names are recorded."""
        return self._rules.pseudonyms.of if self._rules.pseudonyms is not None else None

    @property
    def rewrites_more(self) -> bool:
        """Return True if the user's rules may change more of a clean event than its names."""
        return self._rules.rewrite_more

    def is_clean(self, texts: list[str]) -> bool:
        """Return True if `clean` would change no more than `rewritten` does in an event with these texts.

        It may also return False if `clean` would change no more. `texts` are all texts that the caller gave, including
        the keys and texts of `attributes`. `attributes_are_clean` covers what texts cannot show.

        Raises:
            TypeError: one of them is not a text.
        """
        # An event with a list of too many items has at least as many texts, one with a text above its cap is at least
        # as long: one look at the whole is enough.
        joined = "\n".join(texts)
        if len(joined) > self._plain_chars or len(texts) > self._most_plain_texts:
            return False
        try:
            return FORKS_WAIT.call(self._find, joined.encode()) is None
        except UnicodeEncodeError:
            return False

    def attributes_are_clean(self, attributes: Mapping[str, Any]) -> bool:
        """Return True if `clean` would change nothing in `attributes` except their texts, which `is_clean` examines.

        That is: no key names a secret, all is within the caps, and all values have the types of the model.
        """
        if type(attributes) is not dict or len(attributes) > self._caps.attributes:
            return False
        values: list[Any] = []
        for key, value in attributes.items():
            if type(key) is not str or len(key) > self._caps.key_chars or self._is_secret_name(key):
                return False
            if type(value) is list:
                if len(value) > self._caps.list_items:
                    return False
                values += value
            else:
                values.append(value)
        with FORKS_WAIT:
            return len(values) <= _MAX_PLAIN_VALUES and all(map(_is_plain, values))

    def rewritten(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return a clean event as `clean` would make it. `fields` is not changed; without rules it is the result."""
        if not self._rules.rewrite:
            return fields
        removed: set[Address] = set()
        event = rewritten_event(fields, self._rules, removed)
        paths = sorted(map(path_of, removed))
        # Rare, and more than a few words: lists to be merged, keys that with their dots look like something else.
        if any(name not in _PLAIN_FIELDS for name in fields) or not self.is_clean(paths):
            return self.clean(fields)
        return _with_lists(event, {"redacted": paths} if paths else {})

    def clean(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return a new event without secrets, within the caps, that JSON and UTF-8 can hold. `fields` is not changed.

        The paths of removed parts are added to `redacted`, those of cut parts to `truncated`. Cleaning the event again
        changes nothing, except that a pseudonym gets another one. Never raises an `Exception`, whatever the values are.
        """
        with FORKS_WAIT:
            return _Cleaning(self._caps, self._rules, self._screen, self._is_secret_name).event(fields)


def _is_plain(value: object) -> bool:
    if type(value) is int:
        return INT64_MIN <= value < _LARGE or (_LARGE <= value <= INT64_MAX and not is_card_integer(value))
    if type(value) is float:
        return math.isfinite(value) and (value < _LARGE or not is_card_integer(value))
    return type(value) is str or type(value) is bool


class _Cleaning:
    """The cleaning of one event."""

    def __init__(self, caps: Caps, rules: Rules, screen: Screen, is_secret_name: Callable[[str], bool]) -> None:
        self._caps = caps
        self._rules = rules
        self._texts = EventTexts(screen, caps)
        self._is_secret_name = is_secret_name
        self._json = JsonValues(depth=caps.depth, items=max(caps.list_items, caps.attributes))
        self._found = Findings(cut=self._short_text, most_paths=caps.list_items)

    def event(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        cleaned: dict[str, Any] = {}
        for raw_key, raw_value in self._kept_fields(fields):
            raw_name = self._json.key(raw_key)
            value = self._json.of_field(raw_value)
            if raw_name in _LISTS:
                self._found.before[raw_name] = [self._short_text(text, self._caps.text_chars) for text in _texts(value)]
            elif raw_name in MODEL_FIELDS:
                cleaned[raw_name] = self._field(raw_name, value)
            else:
                name = self._key(raw_name, (), cleaned)
                cleaned[name] = self._foreign(raw_name, name, value)
        fit_line(cleaned, self._found, self._caps)
        return _with_lists(cleaned, self._found.lists())

    def _kept_fields(self, fields: Mapping[str, Any]) -> list[tuple[Any, Any]]:
        """Return all fields of the model, and as many others as an event may have attributes."""
        kept: list[tuple[Any, Any]] = []
        others = 0
        for key, value in fields.items():
            others += not _is_model_field(key)
            if _is_model_field(key) or others <= self._caps.attributes:
                kept.append((key, value))
        if others > self._caps.attributes:
            self._found.truncated.add(())
        return kept

    def _field(self, name: str, value: Any) -> Any:
        value = rewritten_field(name, value, self._rules, self._found.redacted)
        if name == "attributes" and value is not None:
            # Even if it is not a mapping, it is a fact.
            attributes = value if type(value) is dict else self._json.of_field({"value": value})
            return self._attributes(self._kept_attributes(attributes))
        if name in _NUMBERS and type(value) not in _NUMBER_TYPES:
            self._found.truncated.add((name,))  # infinity or NaN: no reader expects a text here
            return None
        return self._value(value, (name,))

    def _foreign(self, raw_name: str, name: str, value: Any) -> Any:
        if not self._rules.keeps_attribute(raw_name):
            self._found.redacted.add((name,))
            return REDACTED
        return REDACTED if self._is_removed(raw_name, value, (name,)) else self._value(value, (name,))

    def _kept_attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        if self._rules.keep_attributes is None:
            return attributes
        if len(attributes) > max(self._caps.list_items, self._caps.attributes):
            self._found.truncated.add(("attributes",))  # there were more, and one of them may have to be kept
        left_out = [key for key in attributes if not self._rules.keeps_attribute(key)]
        self._found.redacted |= {("attributes", self._texts.key(key).text) for key in left_out}
        return {key: value for key, value in attributes.items() if key not in left_out}

    def _attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return attributes as flat as the model wants them. Nested values become JSON text, and None is left out."""
        present = {key: value for key, value in attributes.items() if value is not None}
        cleaned = self._object(present, ("attributes",))
        return {key: self._flat(value, ("attributes", key)) for key, value in cleaned.items()}

    def _flat(self, value: Any, at: Address) -> Any:
        if type(value) is list:
            return [self._scalar(item, (*at, index)) for index, item in enumerate(value)]
        return self._scalar(value, at)

    def _scalar(self, value: Any, at: Address) -> Any:
        return self._text(json_text(value), at) if value is None or type(value) in (list, dict) else value

    def _value(self, value: Any, at: Address) -> Any:
        if self._texts.are_too_many and at[0] not in _PARTS:
            self._found.truncated.add(at)
            return TOO_MANY
        if type(value) is str:
            return self._text(value, at)
        if type(value) is list:
            return self._list(value, at)
        if type(value) is dict:
            return self._object(value, at)
        if type(value) in (int, float) and (at[0] == "attributes" or at[0] not in MODEL_FIELDS):
            return self._number(value, at)
        return value

    def _number(self, value: float, at: Address) -> Any:
        if not is_card_integer(value):
            return value
        self._found.redacted.add(at)
        return REDACTED

    def _list(self, items: list[Any], at: Address) -> list[Any]:
        if len(items) > self._caps.list_items:
            self._found.truncated.add(at)
        split = SplitSecret()
        return [self._item(item, (*at, index), split) for index, item in enumerate(items[: self._caps.list_items])]

    def _item(self, item: Any, at: Address, split: SplitSecret) -> Any:
        if not split.takes(item):
            return self._value(item, at)
        if item != REDACTED:
            self._found.redacted.add(at)
        return REDACTED

    def _object(self, value: dict[str, Any], at: Address) -> dict[str, Any]:
        most = self._caps.attributes if at[0] == "attributes" else max(self._caps.attributes, _PART_FIELDS)
        if len(value) > most:
            self._found.truncated.add(at)
        cleaned: dict[str, Any] = {}
        for raw_key, item in islice(value.items(), most):
            key = self._key(raw_key, at, cleaned)
            here = (*at, key)
            cleaned[key] = REDACTED if self._is_removed(raw_key, item, here) else self._value(item, here)
        return cleaned

    def _is_removed(self, raw_name: str, value: Any, at: Address) -> bool:
        """Return True if the name makes the value a secret. A yes, a no or nothing is not one: `password: true`."""
        if value is None or value == "" or type(value) is bool:
            return False
        # The name as written counts too, since a cut may have left `token` of `token_count`.
        if not self._is_secret_name(raw_name) and not self._is_secret_name(str(at[-1])):
            return False
        if value != REDACTED:
            self._found.redacted.add(at)
        return True

    def _key(self, raw: str, at: Address, taken: Mapping[str, Any]) -> str:
        settled = self._texts.key(raw)
        key = cut_key(free_key(settled.text, taken), self._caps.key_chars)
        self._note(settled, (*at, key))
        return key

    def _text(self, text: str, at: Address) -> str:
        if at in _GENERATED and len(text) <= _GENERATED_CHARS and _GENERATED_SHAPE.fullmatch(text):
            return text
        chars = self._caps.detail_chars if at == ("detail",) else self._caps.text_chars
        settled = self._texts.text(text, chars)
        self._note(settled, at)
        if settled.marker:
            self._found.whole[at] = (settled.head, settled.marker)
        return settled.text

    def _note(self, settled: Settled, at: Address) -> None:
        if settled.removed:
            self._found.redacted.add(at)
        if settled.marker:
            self._found.truncated.add(at)

    def _short_text(self, text: str, chars: int) -> str:
        return self._texts.text(text, chars).text


def _is_model_field(key: object) -> bool:
    return type(key) is str and key in MODEL_FIELDS


def _texts(value: Any) -> list[str]:
    """Return the entries of a list of paths, or of what stands in its place."""
    if value is None:
        return []
    entries = value if type(value) is list else [value]
    return [entry if type(entry) is str else json_text(entry) for entry in entries]


def _with_lists(event: dict[str, Any], lists: dict[str, list[str]]) -> dict[str, Any]:
    """Return the event with the lists behind the fields of the model, where the model has them."""
    own = {name: value for name, value in event.items() if name in MODEL_FIELDS}
    return {**own, **lists, **event}
