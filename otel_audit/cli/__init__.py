"""The `otel-audit` command.

`command` is the group. Each command is in the file of its name, so that a newcomer finds it, and is imported when it is
run. `options` has what several of them take.
"""

from otel_audit.cli.command import main

__all__ = ["main"]
