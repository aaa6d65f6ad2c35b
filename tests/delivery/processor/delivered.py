"""A journal with the processor that delivers it, and streams of processes that are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from otel_audit.delivery.outcomes import Exporter
from otel_audit.delivery.processor import Adoption, BatchProcessor
from otel_audit.delivery.worker import BatchLimits
from otel_audit.journal.cursor import Progress, read_cursor
from otel_audit.journal.files import StreamFiles, streams_in
from otel_audit.journal.journal import Journal
from otel_audit.journal.reader import has_lines_after
from otel_audit.journal.stream import Limits
from tests.journal.writing import a_journal, append, description

__all__ = ["DEFAULTS", "NOBODY", "SHOP", "Deliver", "Delivered", "is_drained", "is_ended", "left_behind", "text"]

SHOP = Adoption(lambda header: header["resource"]["service.name"] == "shop")
NOBODY = Adoption(lambda header: False)
DEFAULTS = BatchLimits()
Describe = Callable[[], Mapping[str, Any]]


class Delivered:
    """A journal and the processor that delivers it."""

    def __init__(self, directory: Path, exporters: Sequence[Exporter], adoption: Adoption, limits: BatchLimits) -> None:
        self.processor = BatchProcessor(directory, exporters, adoption=adoption, limits=limits)
        self.journal = a_journal(
            directory, on_open=lambda stream: self.processor.ship(stream.files), on_fork=self.processor.forked
        )

    def write(self, *names: object) -> None:
        for name in names:
            append(self.journal, name)

    @property
    def seqs(self) -> dict[str, int]:
        stream = self.journal.stream
        return {} if stream is None else {stream.files.stream_id: stream.head.seq}

    @property
    def files(self) -> StreamFiles:
        assert self.journal.stream is not None
        return self.journal.stream.files


class Deliver(Protocol):
    """Makes a journal that is delivered, and closes both at the end of the test."""

    def __call__(
        self, *exporters: Exporter, adoption: Adoption = NOBODY, limits: BatchLimits = DEFAULTS
    ) -> Delivered: ...


def left_behind(
    directory: Path, names: Sequence[object], describe: Describe = description, limits: Limits | None = None
) -> StreamFiles:
    """The stream of a process that is gone."""
    journal = Journal(directory, describe=describe, limits=limits)
    for name in names:
        append(journal, name)
    assert journal.stream is not None
    files = journal.stream.files
    journal.close()
    return files


def is_drained(directory: Path, exporter: str = "otlp") -> bool:
    """Whether the exporter has dealt with every line of every stream, as the cursors on disk say."""
    return not any(
        has_lines_after(files, read_cursor(files.cursor)[0].get(exporter, Progress()).position)
        for files in streams_in(directory)
    )


def is_ended(files: StreamFiles) -> bool:
    return read_cursor(files.cursor)[1]


def text(numbers: Sequence[int]) -> list[str]:
    return [str(number) for number in numbers]
