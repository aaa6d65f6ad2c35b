"""The `otel-audit` command."""

from otel_audit.cli.command import main

__all__ = ["main"]
