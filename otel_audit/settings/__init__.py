"""Every setting, its unit, default and range; from code, environment or YAML."""

from otel_audit.settings.otlp import Compression, OtlpProtocol, OtlpSettings
from otel_audit.settings.privacy import ClientInfo
from otel_audit.settings.proxies import ForwardedHeader
from otel_audit.settings.setting import Origin, Setting, Source
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
    "Setting",
    "Settings",
    "Source",
]
