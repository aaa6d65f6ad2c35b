"""The table of settings: name, variable, kind, range, unit, default and its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from otel_audit.settings.kinds import (
    AnyPath,
    ByteCount,
    Choice,
    FileMode,
    Milliseconds,
    Seconds,
    Switch,
    WholeNumber,
)
from otel_audit.settings.otlp import OTLP_TABLE
from otel_audit.settings.privacy import PRIVACY_TABLE
from otel_audit.settings.proxies import FORWARDED_HEADER, TRUSTED_PROXIES
from otel_audit.settings.service import SERVICE_NAME
from otel_audit.settings.setting import Mismatch, Setting, Variable

__all__ = ["CORE_TABLE", "FORWARDED_HEADER", "TABLE", "TRUSTED_PROXIES", "Durability", "ExporterName", "OnLoss"]


class Durability(StrEnum):
    """What a line survives once `log()` has returned: the end of the process, of the machine's power, or neither."""

    OS = "os"
    FSYNC = "fsync"
    MEMORY = "memory"


class ExporterName(StrEnum):
    """Where events go from the journal."""

    OTLP = "otlp"
    CONSOLE = "console"
    JSONL = "jsonl"
    NONE = "none"  # nowhere: the journal is the destination
    SHIP = "ship"  # another process delivers


class OnLoss(StrEnum):
    """What happens when an event cannot be recorded: the application goes on, or `AuditUnavailable` is raised."""

    OPEN = "open"
    CLOSED = "closed"


_ALONE = (ExporterName.NONE, ExporterName.SHIP)


@dataclass(frozen=True, slots=True)
class ExporterList:
    """Exporters by name, each once; `none` and `ship` only alone."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a comma list of otlp, console, jsonl, or none or ship alone"

    def parse(self, given: object) -> tuple[ExporterName, ...]:
        """See `Kind`."""
        names = tuple(Choice(ExporterName).parse(word) for word in _words(given))
        if not names or len(set(names)) < len(names) or (len(names) > 1 and any(name in _ALONE for name in names)):
            raise Mismatch
        return names


@dataclass(frozen=True, slots=True)
class LogsExporterWords:
    """The words of OTEL_LOGS_EXPORTER that we know. Source: OTel specification, "Exporter selection"."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a comma list of otlp, console, or none alone"

    def parse(self, given: object) -> tuple[ExporterName, ...] | None:
        """See `Kind`. None: the SDK was told to use our own exporter, which says nothing about where that sends."""
        if "otel_audit" in _words(given):
            return None
        names = ExporterList().parse(given)
        if any(name in (ExporterName.JSONL, ExporterName.SHIP) for name in names):
            raise Mismatch
        return names


def _words(given: object) -> list[str]:
    if isinstance(given, str):
        return [word.strip() for word in given.split(",")]
    if isinstance(given, Iterable):
        return [str(word) for word in given]
    raise Mismatch


DIRECTORY: Setting[Path | None] = Setting(
    name="directory",
    variables=(Variable("OTEL_AUDIT_DIR"),),
    kind=AnyPath(),
    default=None,
    default_text="$XDG_STATE_HOME/otel-audit/<service.name>; without it /var/lib/otel-audit/<service.name> for root, "
    "~/.local/state/otel-audit/<service.name> for others; with durability=memory "
    "/dev/shm/otel-audit-<uid>/<service.name>, or the same in /run/user/<uid>",
    doc="Directory of the journal. One service a directory; its processes share it.",
    reason="survives a restart, which /tmp may not; a name that is no safe path is changed and gets a digest",
)
DURABILITY: Setting[Durability] = Setting(
    name="durability",
    variables=(Variable("OTEL_AUDIT_DURABILITY"),),
    kind=Choice(Durability),
    default=Durability.OS,
    doc="What an event survives once log() has returned. os: the death of the process. fsync: loss of power too. "
    "memory: the same as os, but on a file system in memory, for a root that is read-only: gone with the container or "
    "the machine, so receipts say durable=False; new events are lost, as on_loss says, when queue_bytes wait.",
    reason="processes die daily, and waiting for the disk costs several times the rest of the call",
)
EXPORT: Setting[tuple[ExporterName, ...] | None] = Setting(
    name="export",
    variables=(Variable("OTEL_AUDIT_EXPORT"),),
    kind=ExporterList(),
    default=None,
    default_text="OTEL_LOGS_EXPORTER if set, whose otlp counts only with an OTLP endpoint; else otlp when an OTLP "
    "endpoint is set, else none",
    doc="Where events go from the journal. none: nowhere, the journal is the destination. ship: another process, "
    "`otel-audit ship`, delivers.",
    reason="what the service says to OTel already holds here too; an endpoint in code counts before OTEL_LOGS_EXPORTER",
    fallbacks=(Variable("OTEL_LOGS_EXPORTER", LogsExporterWords()),),
)
ON_LOSS: Setting[OnLoss] = Setting(
    name="on_loss",
    variables=(Variable("OTEL_AUDIT_ON_LOSS"),),
    kind=Choice(OnLoss),
    default=OnLoss.OPEN,
    doc="When an event cannot be recorded. open: the application goes on, the loss is counted and said on stderr. "
    "closed: AuditUnavailable is raised.",
    reason="whether an audit failure may stop a service is for its owner to decide",
)
SEGMENT_BYTES: Setting[int] = Setting(
    name="segment_bytes",
    variables=(Variable("OTEL_AUDIT_SEGMENT_BYTES"),),
    kind=ByteCount(4096, 1024**3),
    default=64 * 1024**2,
    default_text="64 MiB",
    unit="bytes",
    doc="Size at which a segment of the journal ends and the next one begins.",
    reason="rotation stays rare at thousands of events a second, and a file can still be opened in an editor",
)
SEGMENT_AGE_S: Setting[float] = Setting(
    name="segment_age_s",
    variables=(Variable("OTEL_AUDIT_SEGMENT_AGE_S"),),
    kind=Seconds(1, 30 * 86400),
    default=3600.0,
    unit="s",
    doc="Age at which a segment ends, however small it is.",
    reason="delivered events can be removed by the hour on a quiet service too",
)
DIRECTORY_BYTES: Setting[int | None] = Setting(
    name="directory_bytes",
    variables=(Variable("OTEL_AUDIT_DIRECTORY_BYTES"),),
    kind=ByteCount(1024**2, 1024**4),
    default=None,
    default_text="none: the disk is the limit",
    unit="bytes",
    doc="What the journal's files in the directory may hold together, those of all processes. From there on new events "
    "are lost, as on_loss says, until it is less; to make room nothing is removed but what retention may remove "
    "anyway. Measured every 5 s: what others write meanwhile comes on top. "
    "Other files are not counted, nor is that of the exporter jsonl.",
    reason="to refuse events while there is room for them is for the owner of the disk to decide",
)
FREE_BYTES: Setting[int | None] = Setting(
    name="free_bytes",
    variables=(Variable("OTEL_AUDIT_FREE_BYTES"),),
    kind=ByteCount(0, 1024**4),
    default=None,
    default_text="a tenth of the file system, at most 1 GiB",
    unit="bytes",
    doc="Free space below which events of outcome success are lost, as on_loss says, unless their rule is closed; "
    "below a tenth of it all events are. Measured every second. 0: events are written until the disk is full.",
    reason="a flood of successes takes neither the room of failures nor that of everybody else on the disk",
)
RETENTION_DAYS: Setting[int | None] = Setting(
    name="retention_days",
    variables=(Variable("OTEL_AUDIT_RETENTION_DAYS"),),
    kind=WholeNumber(0, 36_500),
    default=None,
    default_text="30; 400 when the journal is the destination (export none)",
    unit="days",
    doc="How long a segment of the journal is kept after every exporter has it. 0: for ever. Never removed is what is "
    "not delivered, or in quarantine.",
    reason="a month to send again what the destination lost; where there is no other copy, the 12 months that PCI DSS "
    "10.5.1 asks for, and a month",
)
RETENTION_BYTES: Setting[int] = Setting(
    name="retention_bytes",
    variables=(Variable("OTEL_AUDIT_RETENTION_BYTES"),),
    kind=ByteCount(0, 1024**5),
    default=0,
    default_text="0",
    unit="bytes",
    doc="While the segments of the directory have more, delivered ones are removed before their time, the oldest "
    "first. 0: no limit.",
    reason="what may go early is for its owner to decide",
)
QUEUE_SIZE: Setting[int] = Setting(
    name="queue_size",
    variables=(Variable("OTEL_AUDIT_QUEUE_SIZE"),),
    kind=WholeNumber(1, 1_000_000),
    default=2048,
    unit="events",
    doc="Ignored, and unknown in the next version: the queue is the journal, and queue_bytes is its bound in memory "
    "mode.",
    reason="none: it has no effect",
)
QUEUE_BYTES: Setting[int] = Setting(
    name="queue_bytes",
    variables=(Variable("OTEL_AUDIT_QUEUE_BYTES"),),
    kind=ByteCount(1024**2, 4 * 1024**3),
    default=32 * 1024**2,
    default_text="32 MiB",
    unit="bytes",
    doc="With durability=memory only: what the journal's files in the directory may hold together, those of all "
    "processes. A new event is refused then, never an old one dropped. What is delivered is removed at once.",
    reason="some 30 000 ordinary events, in half of the 64 MiB that a container has at /dev/shm",
)
BATCH_COUNT: Setting[int] = Setting(
    name="batch_count",
    variables=(Variable("OTEL_AUDIT_BATCH_COUNT"),),
    kind=WholeNumber(1, 10_000),
    default=512,
    unit="events",
    doc="Most events in one export.",
    reason="OTel's default, so that a collector sees the batches that it sees from an SDK",
    fallbacks=(Variable("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"),),
)
BATCH_BYTES: Setting[int] = Setting(
    name="batch_bytes",
    variables=(Variable("OTEL_AUDIT_BATCH_BYTES"),),
    kind=ByteCount(512 * 1024, 20 * 1024**2),
    default=3 * 1024**2,
    default_text="3 MiB",
    unit="bytes",
    doc="Most bytes in one request, as it is sent but before compression. A single event is sent whatever its size.",
    reason="gRPC servers refuse messages over 4 MiB unless told otherwise, a collector HTTP bodies over 20 MiB",
)
BATCH_DELAY_S: Setting[float] = Setting(
    name="batch_delay_s",
    variables=(Variable("OTEL_AUDIT_BATCH_DELAY_S"),),
    kind=Seconds(0, 600),
    default=1.0,
    unit="s",
    doc="How long a batch that is not full waits for more events.",
    reason="OTel's default; the event is on disk meanwhile",
    fallbacks=(Variable("OTEL_BLRP_SCHEDULE_DELAY", Milliseconds(0, 600)),),
)
BACKOFF_CAP_S: Setting[float] = Setting(
    name="backoff_cap_s",
    variables=(Variable("OTEL_AUDIT_BACKOFF_CAP_S"),),
    kind=Seconds(1, 3600),
    default=60.0,
    unit="s",
    doc="Longest pause between two tries while the endpoint does not answer well.",
    reason="delivery goes on within a minute after an outage, and a fleet does not hammer an endpoint that is down",
)
CLOSE_TIMEOUT_S: Setting[float] = Setting(
    name="close_timeout_s",
    variables=(Variable("OTEL_AUDIT_CLOSE_TIMEOUT_S"),),
    kind=Seconds(0, 600),
    default=5.0,
    unit="s",
    doc="How long close() may deliver. What is left stays in the journal, and goes out at the next start.",
    reason="half of the 10 s that container runtimes leave between SIGTERM and SIGKILL",
)
TEXT_CHARS: Setting[int] = Setting(
    name="text_chars",
    variables=(Variable("OTEL_AUDIT_TEXT_CHARS"),),
    kind=WholeNumber(128, 65_536),
    default=2048,
    unit="characters",
    doc="Longest text in an event, its detail apart; a longer one is cut, with a marker that holds its digest. So is "
    "one that takes more than twice as many bytes in the line.",
    reason="the longest URL and user agent that proxies and browsers pass on in practice",
)
ATTRIBUTE_COUNT: Setting[int] = Setting(
    name="attribute_count",
    variables=(Variable("OTEL_AUDIT_ATTRIBUTE_COUNT"),),
    kind=WholeNumber(1, 32),
    default=32,
    unit="attributes",
    doc="Most attributes of your own in one event; the others are left out and listed.",
    reason="a record has 64 at most, and our own keys take up to half of them",
)
LINE_BYTES: Setting[int] = Setting(
    name="line_bytes",
    variables=(Variable("OTEL_AUDIT_LINE_BYTES"),),
    kind=ByteCount(32 * 1024, 256 * 1024 - 1),
    default=64 * 1024,
    default_text="64 KiB",
    unit="bytes",
    doc="Longest line of the journal; the longest texts of a longer event are cut until it fits.",
    reason="collectors and stores take it with their default limits; Loki refuses 256 KiB",
)
FILE_MODE: Setting[int] = Setting(
    name="file_mode",
    variables=(Variable("OTEL_AUDIT_FILE_MODE"),),
    kind=FileMode(),
    default=0o600,
    default_text="0600",
    unit="octal",
    doc="Permissions of the journal's files. 0640: a side-car of the same group can ship.",
    reason="audit events are personal data",
)
JSONL_PATH: Setting[Path | None] = Setting(
    name="jsonl_path",
    variables=(Variable("OTEL_AUDIT_JSONL_PATH"),),
    kind=AnyPath(),
    default=None,
    default_text="<directory>/export.jsonl",
    doc="File that the exporter jsonl appends to. It grows until somebody else, such as logrotate, renames or removes "
    "it: no limit of the journal counts it.",
    reason="beside the journal, on the same volume and under the same permissions",
)
LOG_SUCCESSFUL_READS: Setting[bool] = Setting(
    name="log_successful_reads",
    variables=(Variable("OTEL_AUDIT_LOG_SUCCESSFUL_READS"),),
    kind=Switch(),
    default=True,
    doc="Whether reads that succeeded are recorded.",
    reason="who read what is the question most often asked; Feast's default",
)
POLICY: Setting[Path | None] = Setting(
    name="policy",
    variables=(Variable("OTEL_AUDIT_POLICY"),),
    kind=AnyPath(),
    default=None,
    doc="YAML file that says which events are recorded, how much of each, and which must not fail: docs/policy.md. "
    "Read once, at the start.",
    reason="everything is recorded, and log_successful_reads and on_loss count for all",
)

CORE_TABLE: tuple[Setting[object], ...] = (
    SERVICE_NAME,
    DIRECTORY,
    DURABILITY,
    EXPORT,
    ON_LOSS,
    SEGMENT_BYTES,
    SEGMENT_AGE_S,
    RETENTION_DAYS,
    RETENTION_BYTES,
    DIRECTORY_BYTES,
    FREE_BYTES,
    QUEUE_SIZE,
    QUEUE_BYTES,
    BATCH_COUNT,
    BATCH_BYTES,
    BATCH_DELAY_S,
    BACKOFF_CAP_S,
    CLOSE_TIMEOUT_S,
    TEXT_CHARS,
    ATTRIBUTE_COUNT,
    LINE_BYTES,
    FILE_MODE,
    JSONL_PATH,
    LOG_SUCCESSFUL_READS,
    POLICY,
    TRUSTED_PROXIES,
    FORWARDED_HEADER,
    *PRIVACY_TABLE,
)

TABLE = CORE_TABLE + OTLP_TABLE
