"""The settings of the signed ledger: its name, how often it is signed, and who else signs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

import msgspec

from otel_audit.settings.setting import AnyPath, Mismatch, Seconds, Setting, Switch, Variable, WholeNumber

__all__ = [
    "HEAD_LINES",
    "HEAD_SECONDS",
    "IDENTITY_KEY",
    "LEDGER",
    "LOG_NAME",
    "PROOF_TABLE",
    "SIGN_COMMAND",
    "default_log_name",
]

_CHARS_MAX: Final = 200
_NOT_IN_A_NAME: Final = re.compile(r"[\s+\x00-\x1f\x7f-\x9f]")


def default_log_name(service_name: str) -> str:
    """Return the name of a service's log if nobody has chosen one."""
    return "otel-audit/" + _NOT_IN_A_NAME.sub("_", service_name)[:_CHARS_MAX]


class LogName(msgspec.Struct, frozen=True):
    """The name of a log. Source: C2SP signed-note, "Format": neither Unicode spaces nor a plus."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"a name of at most {_CHARS_MAX} characters, without spaces, plus and control characters"

    def parse(self, given: object) -> str:
        """See `Kind`."""
        if not isinstance(given, str) or not 0 < len(given) <= _CHARS_MAX or _NOT_IN_A_NAME.search(given):
            raise Mismatch
        return given


class Command(msgspec.Struct, frozen=True):
    """A command with its arguments, split as a shell would."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a command, quoted as for a shell"

    def parse(self, given: object) -> str:
        """See `Kind`."""
        try:
            words = shlex.split(given) if isinstance(given, str) and "\0" not in given else []
        except ValueError:  # a quote that nobody closes
            raise Mismatch from None
        if not words:
            raise Mismatch
        return str(given)


LEDGER: Setting[bool] = Setting(
    name="ledger",
    variables=(Variable("OTEL_AUDIT_LEDGER"),),
    kind=Switch(),
    default=True,
    doc=(
        "Keep a signed ledger in the directory, so that verify and prove can show a stranger that nothing was changed, "
        "removed or cut. A ledger that was begun goes on even if this is off. Memory mode has none."
    ),
    reason="a trail that nobody signed proves nothing to a stranger, and what was not signed in time never can be",
)
LOG_NAME: Setting[str | None] = Setting(
    name="log_name",
    variables=(Variable("OTEL_AUDIT_LOG_NAME"),),
    kind=LogName(),
    default=None,
    default_text="otel-audit/<service.name>",
    doc=(
        "The name of the signed ledger, which its notes carry together with the id of the directory. It is used "
        "when a ledger begins; an existing one keeps its own."
    ),
    reason="whoever checks a proof pins one name for all directories of a service",
)
HEAD_SECONDS: Setting[float] = Setting(
    name="head_seconds",
    variables=(Variable("OTEL_AUDIT_HEAD_SECONDS"),),
    kind=Seconds(1, 86_400),
    default=300.0,
    unit="s",
    doc="After how many seconds in which a stream moved the ledger says how far it came, and signs that.",
    reason="a head and its note are about 2 KB: every minute, a busy process would write 1 GB of them a year",
)
HEAD_LINES: Setting[int] = Setting(
    name="head_lines",
    variables=(Variable("OTEL_AUDIT_HEAD_LINES"),),
    kind=WholeNumber(1, 10_000_000),
    default=10_000,
    unit="lines",
    doc="After how many lines of a stream the ledger says how far it came, although the seconds are not over.",
    reason="a flood of events is signed within seconds, and its proof costs 0.2 bytes a line",
)
IDENTITY_KEY: Setting[Path | None] = Setting(
    name="identity_key",
    variables=(Variable("OTEL_AUDIT_IDENTITY_KEY"),),
    kind=AnyPath(),
    default=None,
    doc=(
        "The file of a key of the service's own that signs each note beside the ledger's key of the hour: a private "
        "key that only its owner may read, or with sign_command the public key that the command signs for."
    ),
    reason="the ledger signs without it; outsiders who know the key need not know the directory",
)
SIGN_COMMAND: Setting[str | None] = Setting(
    name="sign_command",
    variables=(Variable("OTEL_AUDIT_SIGN_COMMAND"),),
    kind=Command(),
    default=None,
    doc=(
        "A command that signs: it gets the text of a note on stdin and answers with the 64 bytes of an Ed25519 "
        "signature within 30 s. It reaches a key in a KMS, in Vault or in a PKCS#11 token, and is called once a minute "
        "at most, without a shell. It needs identity_key, the public key in PEM that it signs for."
    ),
    reason="a key that is not on the host cannot be stolen from it",
)

PROOF_TABLE: tuple[Setting[object], ...] = (LEDGER, LOG_NAME, HEAD_SECONDS, HEAD_LINES, IDENTITY_KEY, SIGN_COMMAND)
