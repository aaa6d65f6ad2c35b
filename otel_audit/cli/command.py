"""`otel-audit`: the group of all commands, each in the file that has its name."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from otel_audit._version import __version__

__all__ = ["COMMANDS", "main"]

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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="otel-audit")
def main() -> None:
    """Audit events of Python services: look at a journal, and at what became of its events.

    Exit codes: 0 fine, 1 there is something to look into, 2 wrong usage.
    """
