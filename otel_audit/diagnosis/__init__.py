"""Can events be recorded and delivered, as the process is configured and where it runs."""

from otel_audit.diagnosis.configuration import destination_findings, identity_findings, instrument_findings
from otel_audit.diagnosis.directory import directory_findings, missing_words
from otel_audit.diagnosis.findings import Finding
from otel_audit.diagnosis.probe import probe_finding

__all__ = [
    "Finding",
    "destination_findings",
    "directory_findings",
    "identity_findings",
    "instrument_findings",
    "missing_words",
    "probe_finding",
]
