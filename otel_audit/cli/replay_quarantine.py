"""`otel-audit replay --quarantine`: what it says about the quarantined lines that it sends again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from otel_audit.cli.destination import Destination
from otel_audit.replaying.quarantine import QuarantineReplay, QuarantineReport
from otel_audit.settings import OtlpSettings
from otel_audit.terminal import escaped, shown_json

__all__ = ["replay_quarantine"]

_TROUBLES_SHOWN: Final = 20


def replay_quarantine(directory: Path, destination: Destination, *, as_json: bool) -> bool:
    """Send the quarantined lines of a directory and say what became of them. True when nothing is in quarantine now."""
    run = QuarantineReplay(
        directory,
        destination.exporter,
        limits=destination.limits,
        patience=destination.patience,
        file_mode=destination.settings.file_mode,
    )
    report = run.run()
    if as_json:
        click.echo(shown_json(_as_json(directory, destination.otlp, report)))
    else:
        _say(destination.otlp, report)
    return report.is_complete


def _as_json(directory: Path, otlp: OtlpSettings, report: QuarantineReport) -> Mapping[str, Any]:
    return {
        "directory": str(directory),
        "endpoint": otlp.shown_endpoint,
        "streams": report.streams,
        "lines": report.lines,
        "sent": report.sent,
        "refused": len(report.refused),
        "missing": report.missing,
        "refused_lines": [
            {"stream_id": place.file, "seq": place.line, "reason": reason} for place, reason in report.refused
        ],
        "left": report.left or None,
    }


def _say(otlp: OtlpSettings, report: QuarantineReport) -> None:
    click.echo(
        f"{report.sent} of {report.lines} quarantined lines of {report.streams} streams sent to "
        f"{escaped(otlp.shown_endpoint)}, {len(report.refused)} refused again, {report.missing} missing"
    )
    for (stream_id, seq), reason in report.refused[:_TROUBLES_SHOWN]:
        click.echo(f"{stream_id}:{seq}: refused again: {escaped(reason)}", err=True)
    if len(report.refused) > _TROUBLES_SHOWN:
        click.echo(f"and {len(report.refused) - _TROUBLES_SHOWN} more: see --json", err=True)
    if report.left:
        click.echo(f"the rest stays in quarantine: {escaped(report.left)}", err=True)
