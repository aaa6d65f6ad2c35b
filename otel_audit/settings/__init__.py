"""Read every setting from code, the environment or a YAML file, and check it.

The life of one setting, in reading order:

1. `setting`: a row of the table, with its names, its kind of value, its default and the reason for it.
2. `table`, `privacy`, `proof`, `service` and `otlp`: the rows by topic.
3. `reader`: find the value in code, environment or file, and choose the one that wins. `yaml_file` reads the file.
4. `settings`: all settings together, checked against each other, each with the place that it came from.
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
