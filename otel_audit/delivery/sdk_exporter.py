"""Use any exporter of the OTel SDK, whether official, a vendor's or your own, as a destination of the journal."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from otel_audit.delivery.outcomes import Accepted, Batch, ExportOutcome, Refused, Unavailable, UnavailableFor
from otel_audit.delivery.suppression import instrumentation_suppressed, keep_clients_quiet
from otel_audit.records.encoding import UnreadableLine
from otel_audit.records.sdk import LogRecordExporter, readable_records
from otel_audit.threads import process

__all__ = ["MadeOrMaker", "SdkExporter", "sdk_exporters"]

MadeOrMaker = LogRecordExporter | Callable[[], LogRecordExporter]


class SdkExporter:
    """Send journal lines as LogRecords through an exporter written for the SDK.

    It takes an exporter, or a function or class that makes one. Only the latter work in a forked child, which must not
    share connections with its parent and has to make a new exporter.

    Such an exporter reports only SUCCESS or FAILURE, and the official ones report SUCCESS even for a redirect, a login
    page or a partial success. Therefore the name says `unconfirmed`. FAILURE and exceptions count as a server error:
    the batch is tried again, and after ten minutes line by line. A line may wait `delay_s` seconds for others.
    """

    def __init__(self, exporter: MadeOrMaker, *, delay_s: float = 1.0) -> None:
        self.delay_s = delay_s
        self.number = 1  # among the exporters of its class
        self._make = None if isinstance(exporter, LogRecordExporter) else exporter
        self._exporter = exporter if isinstance(exporter, LogRecordExporter) else exporter()
        self._owner = process()
        keep_clients_quiet()

    @property
    def kind(self) -> str:
        """The class of the exporter."""
        return type(self._exporter).__name__

    @property
    def name(self) -> str:
        """The name under which progress is kept. It is the same in every run."""
        return f"{self.kind}{f' {self.number}' if self.number > 1 else ''} (unconfirmed)"

    def export(self, batch: Batch) -> ExportOutcome:
        """Hand the batch over. `Accepted` is what the exporter claims."""
        if self._owner != process():
            if self._make is None and self._owner[0] != os.getpid():
                return Unavailable(
                    f"{self.name} was made before this process was forked, and its connections are the parent's; "
                    "give the class, or a function that makes the exporter, in place of the exporter"
                )
            if self._make is not None:
                self._exporter = self._make()
            self._owner = process()
        try:
            records = readable_records(batch.header, batch.contents)
        except UnreadableLine as error:
            return Refused(str(error))
        try:
            with instrumentation_suppressed():
                result = self._exporter.export(records)
        except Exception as error:  # the text is left out, since it may hold the records
            return Unavailable(f"{self.name}: {type(error).__name__}", UnavailableFor.SERVER_ERROR)
        # Compare names, since releases of the SDK have had two enumerations with the same members.
        if getattr(result, "name", "") == "SUCCESS":
            return Accepted()
        return Unavailable(f"{self.name}: expected SUCCESS, got {result}", UnavailableFor.SERVER_ERROR)

    def close(self) -> None:
        """Shut the exporter down."""
        if self._owner == process():
            with contextlib.suppress(Exception):  # the lines are in the journal, whatever happens here
                self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK left it without types


def sdk_exporters(given: Sequence[MadeOrMaker], *, delay_s: float) -> list[SdkExporter]:
    """Return each exporter as a destination. From the second of a class on, the name has a number."""
    made = [SdkExporter(each, delay_s=delay_s) for each in given]
    for position, exporter in enumerate(made):
        exporter.number = 1 + sum(earlier.kind == exporter.kind for earlier in made[:position])
    return made
