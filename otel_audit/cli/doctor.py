"""`otel-audit doctor`: check that a service with these settings can record events here and deliver them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit.cli.command import FINDING, WRONG_USAGE
from otel_audit.cli.options import GivenPath, plain_console
from otel_audit.delivery.otlp.exporter import OtlpExporter
from otel_audit.diagnosis.configuration import destination_findings, identity_findings, instrument_findings
from otel_audit.diagnosis.directory import directory_findings
from otel_audit.diagnosis.findings import Finding
from otel_audit.diagnosis.ledger import ledger_findings
from otel_audit.diagnosis.probe import probe_finding
from otel_audit.errors import ConfigError
from otel_audit.notices import escaped, shown_json
from otel_audit.policy import read_policy
from otel_audit.redaction import Rules
from otel_audit.settings import ExporterName, Settings

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["doctor"]

_NAME_CELLS: Final = 12  # "service name"
_REMEDY_INDENT: Final = " " * 5


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=GivenPath())
@click.option("--no-probe", is_flag=True, help="Send no event, and do not check that the endpoint accepts one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with every check.")
def doctor(directory: Path | None, no_probe: bool, as_json: bool) -> None:
    """Check that events can be recorded and delivered: each line is ok, or says what to do.

    Run it as the user and with the environment of the service. DIR replaces OTEL_AUDIT_DIR. Nothing is left
    in the directory; one event of type otel_audit.doctor is sent to the endpoint.

    Exit code 1 when there is something to do.
    """
    # gRPC's library repeats on stderr what the finding says. It reads this when it is loaded, by the exporter.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        settings = Settings.load(os.environ, {} if directory is None else {"directory": str(directory)})
        if settings.policy is not None:
            read_policy(settings.policy)
        Rules.of(settings)
        exporter = _exporter(settings)
    except ConfigError as error:
        click.echo(f"otel-audit doctor: {escaped(str(error))}", err=True)
        sys.exit(WRONG_USAGE)
    findings = _findings(settings, None if no_probe else exporter)
    if as_json:
        found = list(findings)
        click.echo(shown_json(_as_json(settings, found)))
    else:
        found = _shown(findings)
    sys.exit(0 if all(finding.ok for finding in found) else FINDING)


def _exporter(settings: Settings) -> OtlpExporter | None:
    if ExporterName.OTLP not in settings.export or settings.otlp is None:
        return None
    return OtlpExporter(settings.otlp)


def _findings(settings: Settings, exporter: OtlpExporter | None) -> Iterator[Finding]:
    yield from identity_findings(settings)
    yield from directory_findings(settings)
    yield from ledger_findings(settings)
    yield from destination_findings(settings)
    yield from instrument_findings(settings, os.environ)
    if exporter is not None:
        yield probe_finding(settings, exporter)
        exporter.close()


def _as_json(settings: Settings, findings: Sequence[Finding]) -> Mapping[str, Any]:
    return {
        "directory": str(settings.directory),
        "ok": all(finding.ok for finding in findings),
        "checks": [
            {"check": each.check, "ok": each.ok, "says": each.says, "remedy": each.remedy or None} for each in findings
        ],
    }


def _shown(findings: Iterator[Finding]) -> list[Finding]:
    """Print each finding as it comes, since the probe may take its time, and return all of them."""
    console = plain_console()
    found = []
    for finding in findings:
        console.print(_text(finding))
        found.append(finding)
    return found


def _text(finding: Finding) -> Text:
    from rich.text import Text

    name = f"{finding.check:<{_NAME_CELLS}}  "
    if finding.ok:
        return Text.assemble(("ok   ", "green"), (name, "bold"), escaped(finding.says))
    return Text.assemble(
        ("FIX  ", "bold red"),
        (name, "bold"),
        escaped(finding.says),
        ("\n" + _REMEDY_INDENT),
        ("-> ", "bold yellow"),
        (escaped(finding.remedy), "yellow"),
    )
