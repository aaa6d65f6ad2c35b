"""Retention as the settings ask for it, for who delivers the streams of a directory."""

from __future__ import annotations

from collections.abc import Iterable

from otel_audit.delivery.adoption import Adoption
from otel_audit.journal.files import StreamFiles
from otel_audit.journal.retention import Retention, RetentionLimits
from otel_audit.notices import Notices
from otel_audit.settings import Settings

__all__ = ["retention_of"]


def retention_of(
    settings: Settings, adoption: Adoption, exporters: Iterable[str], notices: Notices
) -> Retention | None:
    """Removes what the adopter of these streams has delivered with these exporters; None when all is kept for ever."""
    limits = RetentionLimits(settings.retention_days, settings.retention_bytes)
    if limits == RetentionLimits():
        return None

    def failed(files: StreamFiles, error: Exception) -> None:
        notices.say(
            f"retention {files.stream_id}", f"{files.segment(1)}: a stream cannot be looked at for retention: {error!r}"
        )

    return Retention(
        settings.directory,
        limits,
        wanted=adoption.wanted,
        exporters=exporters,
        foreign=adoption.foreign,
        file_mode=settings.file_mode,
        failed=failed,
    )
