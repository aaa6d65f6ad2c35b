"""OTel's log record classes, from the one place where this package imports them.

Both the API's and the SDK's modules are private (`_logs`) and have moved before: what a release moves is mended here.

Source: OpenTelemetry for Python, `opentelemetry._logs`, `opentelemetry.sdk._logs`, `opentelemetry.sdk._logs.export`.
"""

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult

__all__ = [
    "LogRecord",
    "LogRecordExportResult",
    "LogRecordExporter",
    "LogRecordProcessor",
    "ReadWriteLogRecord",
    "ReadableLogRecord",
    "SeverityNumber",
]
