"""The `otel-audit` command.

The life of one call, in reading order:

1. `command`: the group finds the command, and imports its file only then. Each command is in the file of its name, but
   `keygen`, `vkey` and `pseudonym` are in `keys`. Without a command, `overview` shows what is here.
2. `options`: parameters that several commands take, such as the directory, an age or a moment, with the errors that a
   wrong one gets; who looks is recorded, and signals end a command.
3. `source`: open what a command reads as a whole, and show how far it was read.
4. The command prints text for people, or JSON with `--json`, and ends with 0, 1 or 2.

Parts of commands have files of their own: `demo_service` of `demo`, `exposition` of `status`, and `health` of `ship`.
"""

from otel_audit.cli.command import main

__all__ = ["main"]
