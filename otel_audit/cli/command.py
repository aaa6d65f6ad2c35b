"""`otel-audit`: the group of all commands, each in the file that has its name."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

from otel_audit._version import __version__
from otel_audit.notices import escaped

__all__ = ["COMMANDS", "main"]

_FINDING: Final = 1
COMMANDS: Final = ("demo", "tail", "status", "ship", "replay", "doctor", "config", "schema", "pseudonym")


class _Commands(click.Group):
    """Imports the file of a command when it is asked for: each needs other, sometimes slow, imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"otel_audit.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The first sentence of each command, whole: click would cut it to fit one line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_sentence(self.get_command(ctx, name))) for name in COMMANDS])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. A disk that is full, or a file that went away, is said in one line."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when who read us, such as `head`, has enough
        except OSError as error:
            click.echo(f"otel-audit {ctx.invoked_subcommand}: {escaped(_what_failed(error))}", err=True)
            ctx.exit(_FINDING)


def _first_sentence(command: click.Command | None) -> str:
    text = " ".join((command.help if command is not None and command.help else "").split("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")


def _what_failed(error: OSError) -> str:
    where = error.filename if error.filename is not None else "its output"
    return f"expected to read or write {where}, got {error.strerror or error}; correct that and run it again"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="otel-audit")
def main() -> None:
    """Audit events of Python services: look at a journal, and at what became of its events.

    Exit codes: 0 fine, 1 there is something to look into, 2 wrong usage.
    """
