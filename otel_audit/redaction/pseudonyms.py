"""Names that only the holder of a key can find again: `p1:<key id>:<32 hex digits>`.

The same name has the same pseudonym as long as the key is the same, so that what one person did can be followed; who
it was can only be said by trying names under the key. `p1` is the form: HMAC-SHA-256 (RFC 2104) of the name in UTF-8,
its first 128 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import ConfigError
from otel_audit.redaction.json_values import safe_text
from otel_audit.redaction.line_fit import json_text

__all__ = ["PseudonymKey", "Pseudonyms", "read_keyring"]

_KEY_HEX_DIGITS: Final = 64
_KEY_LINE: Final = re.compile(rb"([0-9A-Fa-f]{64})(?:\s+#.*)?")
_KEY_ID_DOMAIN: Final = b"otel-audit pseudonym key"
_NAMES: Final = ("username", "id", "on_behalf_of")
_MAKE_ONE: Final = "make one with `openssl rand -hex 32`"


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """A key of 32 bytes. `id`: 8 hex digits that follow from it and do not tell it."""

    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: bytes) -> PseudonymKey:
        """The key of these 32 bytes."""
        return cls(hmac.digest(secret, _KEY_ID_DOMAIN, hashlib.sha256).hex()[:8], secret)

    def pseudonym_of(self, name: str) -> str:
        """What is recorded instead of the name."""
        return f"p1:{self.id}:{hmac.digest(self.secret, safe_text(name).encode(), 'sha256').hex()[:32]}"


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Keys, the newest first: that one is used, the others find what was recorded before."""

    keys: tuple[PseudonymKey, ...]

    def of(self, name: str) -> str:
        """The pseudonym under the newest key. An empty name is nobody's and stays empty."""
        return self.keys[0].pseudonym_of(name) if name else name

    def of_principal(self, principal: Any) -> Any:
        """The `principal` of an event with pseudonyms for its names. One that is no mapping may be a name itself."""
        if type(principal) is dict:
            return {key: self._of_any(value) if key in _NAMES else value for key, value in principal.items()}
        return self._of_any(principal)

    def _of_any(self, name: Any) -> Any:
        if name is None:
            return None
        return self.of(name if type(name) is str else json_text(name))

    def all_of(self, name: str) -> list[str]:
        """Every pseudonym that the name has had, the newest first."""
        return [key.pseudonym_of(name) for key in self.keys]


def read_keyring(path: str | Path) -> Pseudonyms:
    """The keys in a file: one of 64 hex digits a line, the newest first; empty lines and `# comments` are left out.

    Raises:
        ConfigError: it cannot be read, others may read it, or it is not such a file. No key is in the message.
    """
    try:
        with open(path, "rb") as file:
            _refuse_if_others_may_read(path, os.fstat(file.fileno()))
            lines = file.read().splitlines()
    except OSError as error:
        raise ConfigError(
            f"pseudonym_keys: expected a readable file of keys, got {str(path)!r}: {error.strerror}; correct the path, "
            f"or {_MAKE_ONE}"
        ) from error
    keys = [_key(path, number, line) for number, line in enumerate(map(bytes.strip, lines), start=1) if _is_key(line)]
    if not keys:
        raise ConfigError(f"{path}: expected a key of {_KEY_HEX_DIGITS} hex digits, got none; {_MAKE_ONE}")
    if len({key.id for key in keys}) < len(keys):
        raise ConfigError(f"{path}: expected each key once, got one a second time; remove it")
    return Pseudonyms(tuple(keys))


def _is_key(line: bytes) -> bool:
    return bool(line) and not line.startswith(b"#")


def _key(path: str | Path, number: int, line: bytes) -> PseudonymKey:
    found = _KEY_LINE.fullmatch(line)
    if found is None:
        raise ConfigError(
            f"{path}:{number}: expected a key of {_KEY_HEX_DIGITS} hex digits, got another line of {len(line)} "
            f"characters, which is not shown; {_MAKE_ONE}"
        )
    return PseudonymKey.of(bytes.fromhex(found[1].decode()))


def _refuse_if_others_may_read(path: str | Path, status: os.stat_result) -> None:
    # A secret that root mounts for the service's group, as Kubernetes does, has no other way to the service.
    allowed = 0o640 if status.st_uid == 0 and os.geteuid() != 0 else 0o600
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~allowed & 0o077:
        raise ConfigError(
            f"{path}: expected a file of keys that nobody else may read, mode {allowed:04o} or less, got {mode:04o}; "
            f"run: chmod {allowed:o} {path}"
        )
