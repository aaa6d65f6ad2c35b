"""`otel-audit`: the group of all commands. Each is in the file of its name, and those about keys are in `keys`."""

from __future__ import annotations

import errno
import io
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final

import click

from otel_audit._version import __version__
from otel_audit.notices import escaped

__all__ = ["COMMANDS", "FINDING", "WRONG_USAGE", "main"]

# Exit codes of all commands; 0 says that all is well.
FINDING: Final = 1
WRONG_USAGE: Final = 2
_INTERRUPTED: Final = 130  # as a shell reports an end by SIGINT
_UNREAD: Final = 141  # as a shell reports an end by SIGPIPE; a reader that has seen enough is no finding

# Each command with the first sentence of its own help, so that `--help` need not import what all of them stand on.
COMMANDS: Final = {
    "demo": "Run a small service with real requests and spans, and show its audit events as they happen",
    "tail": "Show the last events, and follow new ones",
    "query": "Find events in a trail, the newest first, or ask about it in SQL",
    "view": "Look at a trail in a browser: what happened, who did it, and whether it is proven",
    "pack": "Pack a trail into Parquet files: a folder for each service, and files for each day",
    "report": "Report on a trail in one HTML file: what happened, what covers the time, and what a verification shows",
    "prove": "Write a proof that the event EVENT_ID is in the trail, byte for byte as it was written",
    "status": "Count the events that were delivered, are waiting, were refused or were lost",
    "verify": "Check that a trail is whole, and say what is proven and what is not",
    "ship": "Deliver over OTLP the events that processes left in a directory, or write with OTEL_AUDIT_EXPORT=ship",
    "export": "Write the events of a trail in another format, one JSON object a line",
    "replay": "Send the events in PATH to the OTLP endpoint of the settings, with their times, ids and span",
    "doctor": "Check that events can be recorded and delivered: each line is ok, or says what to do",
    "config": "Print each setting in force and where it came from",
    "schema": "Print the fields of an event and the OTel attributes that they are mapped to",
    "keygen": "Create an identity key in FILE, readable only by you",
    "vkey": "Print the verifier key of the identity in FILE, a private or a public key in PEM",
    "pseudonym": "Print what each NAME is recorded as under each key, the newest key first",
}
_KEYS: Final = {"keygen", "vkey", "pseudonym"}


class _Commands(click.Group):
    """Imports the file of a command when it is run: each needs other imports, some of them slow."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"otel_audit.cli.{'keys' if cmd_name in _KEYS else cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. For an unknown one, name the one that was probably meant."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS and not ctx.resilient_parsing:
            near = get_close_matches(args[0], COMMANDS, 1)
            remedy = f"did you mean {near[0]}?" if near else "`otel-audit --help` lists them"
            ctx.fail(f"expected a command, got {escaped(args[0])!r}; {remedy}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _in_our_words(error, ctx.command_path) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each sentence whole; click would cut it to fit one line."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Report a full disk, or a file that has gone, in one line instead of a traceback."""
        _buffer_stdout()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(f"\notel-audit {ctx.invoked_subcommand}: interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except click.UsageError as error:
            raise _in_our_words(error, f"{ctx.command_path} {ctx.invoked_subcommand}") from None
        except OSError as error:
            _drop_unwritten()
            if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
                ctx.exit(_UNREAD)
            click.echo(f"otel-audit {ctx.invoked_subcommand}: {escaped(_what_failed(error))}", err=True)
            ctx.exit(FINDING)


def _in_our_words(error: click.UsageError, command: str) -> click.UsageError:
    """Return an error of click in the form of all others: expected, got, remedy. The usage above it says where."""
    match error:
        case click.NoSuchOption(option_name=name, possibilities=near):
            remedy = f"did you mean {' or '.join(sorted(near))}?" if near else f"`{command} --help` lists them"
            said = f"expected an option of {command}, got {escaped(name)!r}; {remedy}"
        case click.BadOptionUsage(option_name=name) if "requires" in error.message:
            said = f"expected a value after {name}, got none; `{command} --help` says which"
        case click.BadOptionUsage(option_name=name):
            said = f"expected no value for {name}, got one; leave it out"
        case click.MissingParameter(param=click.Parameter() as param):
            name = param.human_readable_name if isinstance(param, click.Argument) else param.opts[-1]
            said = f"expected {name}, got none; `{command} --help` says what it is"
        case _ if error.message.startswith("Got unexpected extra argument"):
            got = escaped(error.message.partition("(")[2].removesuffix(")"))
            said = f"expected no more arguments, got {got!r}; `{command} --help` says which it takes"
        case _:
            return error
    return click.UsageError(said, error.ctx)


def _buffer_stdout() -> None:
    """Make `sys.stdout` write each text whole, or raise, also under PYTHONUNBUFFERED.

    There, Python passes over a write that was cut short, as by a full disk, and the command ended as if all was well.
    """
    if isinstance(getattr(sys.stdout, "buffer", None), io.RawIOBase):
        old = sys.stdout
        sys.stdout = open(old.fileno(), "w", encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115  # until the end


def _drop_unwritten() -> None:
    """Drop output that cannot be written. Otherwise the interpreter would try again at its end, and complain."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed by the caller
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _what_failed(error: OSError) -> str:
    # A file is written beside its place, and takes it when it is whole.
    where = str(error.filename).removesuffix(".unfinished") if error.filename is not None else "its output"
    remedy = _REMEDIES.get(error.errno or 0, "correct that and run it again")
    return f"expected to read or write {where}, got {error.strerror or error}; {remedy}"


_UNWRITABLE: Final = "name another place, or run it as a user who may use this one"
_REMEDIES: Final = {
    errno.ENOENT: "correct the path or make its directory, and run it again",
    errno.ENOTDIR: "correct the path",
    errno.EACCES: _UNWRITABLE,
    errno.EPERM: _UNWRITABLE,
    errno.EROFS: _UNWRITABLE,
}


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="otel-audit")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Read, check and deliver the audit events of Python services.

    Without a command, it shows what is in the journal here and what to run next.

    Exit codes: 0 all is well, 1 something needs a look, 2 wrong usage, 130 interrupted, 141 nobody reads the output.
    """
    if ctx.invoked_subcommand is None:
        import_module("otel_audit.cli.overview").show_overview()
