"""Every setting, with its unit, default and range, read from code, environment or a YAML file.

Read it in this order: `setting` (one row of the table, and what its value may be), `table`, `privacy`, `proof`,
`service` and `otlp` (the rows), `yaml_file` and `reader` (where values come from, and which one wins), `settings` (all
of them, checked).
"""

from otel_audit.settings.otlp import Compression, OtlpProtocol, OtlpSettings
from otel_audit.settings.privacy import ClientInfo, ForwardedHeader
from otel_audit.settings.setting import Origin, Provenance, Setting
from otel_audit.settings.settings import Settings
from otel_audit.settings.table import Durability, ExporterName, OnLoss

__all__ = [
    "ClientInfo",
    "Compression",
    "Durability",
    "ExporterName",
    "ForwardedHeader",
    "OnLoss",
    "Origin",
    "OtlpProtocol",
    "OtlpSettings",
    "Provenance",
    "Setting",
    "Settings",
]
