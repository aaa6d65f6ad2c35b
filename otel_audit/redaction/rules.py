"""What a user says about redaction, beside what is built in."""

from __future__ import annotations

from dataclasses import dataclass

from otel_audit.errors import ConfigError
from otel_audit.redaction.pseudonyms import Pseudonyms, read_keyring
from otel_audit.redaction.screen import SCREEN, Screen
from otel_audit.redaction.secret_pattern import REDACTED, SecretPattern
from otel_audit.settings import Settings
from otel_audit.settings.privacy import ClientInfo, pattern_fault

__all__ = ["Rules"]

_REDACTED = REDACTED.encode()


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a user. Their fields are the settings of docs/settings.md, but for the keys, which are read here.

    Raises:
        ConfigError: a pattern is wrong; says which one, and where.
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
        """The rules that the settings say.

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
        """Whether they may change an event in which there is no secret."""
        return self.rewrite_more or self.pseudonyms is not None

    @property
    def rewrite_more(self) -> bool:
        """Whether they may change more of it than names."""
        return self.keep_attributes is not None or self.client_info is not ClientInfo.KEEP

    def screen(self) -> Screen:
        """What finds the secrets of the table and those of `redact_patterns`."""
        if not self.redact_patterns:
            return SCREEN
        return Screen(SecretPattern("own", pattern, "the user's", _is_not_redacted) for pattern in self.redact_patterns)

    def keeps_attribute(self, key: str) -> bool:
        """Whether an attribute with this key is recorded at all."""
        return self.keep_attributes is None or any(_matches(key, name) for name in self.keep_attributes)


def _matches(key: str, name: str) -> bool:
    return key.startswith(name[:-1]) if name.endswith("*") else key == name


def _is_not_redacted(value: bytes) -> bool:
    """Whether it is no part of the mark of an earlier removal, and not empty."""
    return value not in _REDACTED
