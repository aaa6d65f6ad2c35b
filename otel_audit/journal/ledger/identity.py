"""The identity of a service: a stable key that outsiders know. It signs the notes in addition to the epoch's key.

A key in a file signs during the turn. A key in a vault signs through a command, which may take seconds and never runs
under the ledger's lock. The note is written first, and the signature follows in a later entry.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from otel_audit.errors import KeyUnusable, NoteMalformed, described
from otel_audit.signing.keys import SigningKey, VerifierKey, read_identity, read_public_identity
from otel_audit.signing.note import Note, Signature
from otel_audit.threads import process

__all__ = ["Identity"]

_COMMAND_TIMEOUT_S: Final = 30.0
_SIGNATURE_BYTES: Final = 64


class Identity:
    """The identity named by the settings, if any. For one thread at a time.

    `key` is the file of the private key. If a `command` signs, it is the file of the matching public key. `say` is
    called with a kind and a text if there is no signature, without which the ledger continues.
    """

    def __init__(
        self,
        key: Path | None = None,
        command: str | None = None,
        *,
        say: Callable[[str, str], object] = lambda *_: None,
    ) -> None:
        self._path = key
        self._command = command
        self._say = say
        self._read_by: tuple[int, int] | None = None
        self._signing: SigningKey | None = None
        self._public: bytes | None = None

    @property
    def has_command(self) -> bool:
        """True if a command signs."""
        return self._command is not None

    def verifier(self, origin: str) -> VerifierKey | None:
        """Return the public key under the name of a ledger, or None without a usable identity."""
        self._read()
        return VerifierKey(origin, self._public) if self._public is not None else None

    def signed(self, note: Note, origin: str) -> Note:
        """Return the note, signed by the key in the file if there is one."""
        self._read()
        return note.signed(self._signing, origin) if self._signing is not None else note

    def ask(self, note: Note, origin: str) -> Signature | None:
        """Return the command's signature of the note. If it fails, report why and return None.

        This may take half a minute. The command gets the text of the note on stdin and prints the 64 bytes of the
        signature.
        """
        key = self.verifier(origin)
        if self._command is None or key is None:
            return None
        text = note.text.encode()
        try:
            done = subprocess.run(
                shlex.split(self._command), input=text, capture_output=True, timeout=_COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._say("identity", f"OTEL_AUDIT_SIGN_COMMAND: expected a signature, got {described(error)}")
            return None
        answer = done.stderr[:500].decode(errors="replace").strip()
        if done.returncode or len(done.stdout) != _SIGNATURE_BYTES:
            self._say(
                "identity",
                f"OTEL_AUDIT_SIGN_COMMAND: expected exit code 0 and {_SIGNATURE_BYTES} bytes of a signature, got "
                f"{done.returncode} and {len(done.stdout)} bytes; it says on stderr: {answer}",
            )
            return None
        if not key.verifies(text, done.stdout):
            self._say("identity", f"OTEL_AUDIT_SIGN_COMMAND: expected a signature of {key}, got one of another key")
            return None
        return Signature(origin, key.key_id, done.stdout)

    def forked(self) -> None:
        """Forget the key in a forked child, which reads it again when it takes a turn of its own."""
        self._read_by, self._signing, self._public = None, None, None

    def _read(self) -> None:
        if self._path is None or self._read_by == process():
            return
        self.forked()
        try:
            if self._command is not None:
                self._public = read_public_identity(self._path)
            else:
                self._signing = read_identity(self._path)
                self._public = self._signing.verifier("identity").public
            self._read_by = process()
        except (KeyUnusable, NoteMalformed) as error:
            self._say("identity", f"notes are signed by the key of the epoch alone: {error}")
