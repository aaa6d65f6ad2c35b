"""Export journal lines over OTLP: build one request of a batch, and send it by the protocol of the settings."""

from __future__ import annotations

from typing import Protocol

from otel_audit.delivery.outcomes import Batch, ExportOutcome, Refused, RefusedFor
from otel_audit.records.encoding import UnreadableLine, encoded_request
from otel_audit.settings import OtlpProtocol, OtlpSettings
from otel_audit.threads import give_way

__all__ = ["OtlpExporter"]


class _Transport(Protocol):
    def export(self, request: bytes, records: int) -> ExportOutcome: ...

    def close(self) -> None: ...


class OtlpExporter:
    """Send journal lines as LogRecords to an OTLP endpoint.

    A request of more than `batch_bytes` before compression is refused here, unless it has one record only.

    Raises:
        ConfigError: the endpoint or a header cannot be sent at all.
    """

    name = "otlp"

    def __init__(self, settings: OtlpSettings, *, delay_s: float = 1.0, batch_bytes: int = 3 << 20) -> None:
        self.delay_s = delay_s
        self._batch_bytes = batch_bytes
        self._transport = _transport(settings)

    def export(self, batch: Batch) -> ExportOutcome:
        """Send the lines of the batch as one request, and return what became of them."""
        try:
            request = encoded_request(batch.header, batch.contents, give_way=give_way)
        except UnreadableLine as error:
            return Refused(str(error))
        except MemoryError:
            raise
        except Exception as error:  # the request depends on the lines alone, so another try would fail too
            return Refused(f"no record can be built: {type(error).__name__}")
        return self.send(request, len(batch.lines))

    def send(self, request: bytes, records: int) -> ExportOutcome:
        """Send a serialised ExportLogsServiceRequest of `records` records, and return what became of them.

        It returns within the time-out of the settings, whatever the network does.
        """
        if len(request) > self._batch_bytes and records > 1:
            return Refused(f"a request of {len(request)} bytes, over {self._batch_bytes}", RefusedFor.LIMIT)
        return self._transport.export(request, records)

    def close(self) -> None:
        """Close the connections. A later export opens new ones."""
        self._transport.close()


def _transport(settings: OtlpSettings) -> _Transport:
    match settings.protocol:
        # Not at the top: `requests` takes 100 ms to load, gRPC's library 60 ms and 8 MB, and the latter puts hooks on
        # every fork of the process.
        case OtlpProtocol.HTTP_PROTOBUF:
            from otel_audit.delivery.otlp.http import OtlpHttpExporter

            return OtlpHttpExporter(settings)
        case OtlpProtocol.GRPC:
            from otel_audit.delivery.otlp.grpc import OtlpGrpcExporter

            return OtlpGrpcExporter(settings)
