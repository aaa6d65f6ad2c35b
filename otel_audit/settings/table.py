"""The table of settings: name, variable, kind, range, unit, default and its reason."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

import msgspec

from otel_audit.settings.otlp import OTLP_TABLE
from otel_audit.settings.privacy import FORWARDED_HEADER, PRIVACY_TABLE, TRUSTED_PROXIES
from otel_audit.settings.proof import PROOF_TABLE
from otel_audit.settings.service import SERVICE_NAME
from otel_audit.settings.setting import (
    AnyPath,
    ByteCount,
    Choice,
    FileMode,
    Milliseconds,
    Mismatch,
    Seconds,
    Setting,
    Switch,
    Variable,
    WholeNumber,
)

__all__ = ["CORE_TABLE", "FORWARDED_HEADER", "TABLE", "TRUSTED_PROXIES", "Durability", "ExporterName", "OnLoss"]


class Durability(StrEnum):
    """The event that a line survives once `log()` has returned: the end of the process, a loss of power, or neither."""

    OS = "os"
    FSYNC = "fsync"
    MEMORY = "memory"


class ExporterName(StrEnum):
    """The destinations of events from the journal."""

    OTLP = "otlp"
    CONSOLE = "console"
    JSONL = "jsonl"
    NONE = "none"  # nowhere: the journal is the destination
    SHIP = "ship"  # another process delivers


class OnLoss(StrEnum):
    """The reaction to an event that cannot be recorded: the application continues, or `AuditUnavailable` is raised."""

    OPEN = "open"
    CLOSED = "closed"


_ALONE = (ExporterName.NONE, ExporterName.SHIP)


class ExporterList(msgspec.Struct, frozen=True):
    """Exporters by name, each once. `none` and `ship` stand alone."""

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


class LogsExporterWords(msgspec.Struct, frozen=True):
    """The words of OTEL_LOGS_EXPORTER that we know. Source: OTel specification, "Exporter selection"."""

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return "a comma list of otlp, console, or none alone"

    def parse(self, given: object) -> tuple[ExporterName, ...] | None:
        """See `Kind`. None: the SDK was told to use our own exporter, which does not say where that sends."""
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
    doc="The directory of the journal. Each service has its own; the processes of one service share it.",
    reason=(
        "it survives a restart, which /tmp may not. A service name that is not a safe file name is changed and gets a "
        "digest"
    ),
)
DURABILITY: Setting[Durability] = Setting(
    name="durability",
    variables=(Variable("OTEL_AUDIT_DURABILITY"),),
    kind=Choice(Durability),
    default=Durability.OS,
    doc=(
        "What an event survives once log() has returned. os: the death of the process. fsync: a loss of power too. "
        "memory: the same as os, but on a file system in memory, for a root that is read-only. That is gone with the "
        "container or the machine, so receipts say durable=False. When queue_bytes are waiting, new events are lost, "
        "as on_loss says."
    ),
    reason="processes die every day, and waiting for the disk costs several times as much as the rest of the call",
)
EXPORT: Setting[tuple[ExporterName, ...] | None] = Setting(
    name="export",
    variables=(Variable("OTEL_AUDIT_EXPORT"),),
    kind=ExporterList(),
    default=None,
    default_text="OTEL_LOGS_EXPORTER if set, whose otlp counts only with an OTLP endpoint; else otlp when an OTLP "
    "endpoint is set, else none",
    doc=(
        "Where events go from the journal. none: nowhere, the journal is the destination. ship: another process, "
        "`otel-audit ship`, delivers them."
    ),
    reason="what the service already tells OTel also holds here. An endpoint in code counts before OTEL_LOGS_EXPORTER",
    fallbacks=(Variable("OTEL_LOGS_EXPORTER", LogsExporterWords()),),
)
ON_LOSS: Setting[OnLoss] = Setting(
    name="on_loss",
    variables=(Variable("OTEL_AUDIT_ON_LOSS"),),
    kind=Choice(OnLoss),
    default=OnLoss.OPEN,
    doc=(
        "What happens when an event cannot be recorded. open: the application goes on, and the loss is counted and "
        "reported on stderr. closed: AuditUnavailable is raised."
    ),
    reason="whether an audit failure may stop a service is for its owner to decide",
)
SEGMENT_BYTES: Setting[int] = Setting(
    name="segment_bytes",
    variables=(Variable("OTEL_AUDIT_SEGMENT_BYTES"),),
    kind=ByteCount(4096, 1024**3),
    default=64 * 1024**2,
    default_text="64 MiB",
    unit="bytes",
    doc="The size at which a segment of the journal ends and the next one begins.",
    reason="rotation stays rare at thousands of events a second, and an editor can still open the file",
)
SEGMENT_AGE_S: Setting[float] = Setting(
    name="segment_age_s",
    variables=(Variable("OTEL_AUDIT_SEGMENT_AGE_S"),),
    kind=Seconds(1, 30 * 86400),
    default=3600.0,
    unit="s",
    doc="The age at which a segment ends, however small it is.",
    reason="delivered events can be removed by the hour, on a quiet service too",
)
DIRECTORY_BYTES: Setting[int | None] = Setting(
    name="directory_bytes",
    variables=(Variable("OTEL_AUDIT_DIRECTORY_BYTES"),),
    kind=ByteCount(1024**2, 1024**4),
    default=None,
    default_text="none: the disk is the limit",
    unit="bytes",
    doc=(
        "How much the journal's files in the directory may hold together, those of all processes included. Above "
        "that, new events are lost, as on_loss says; only files that retention may remove anyway are removed to make "
        "room. It is measured every 5 s, and what other processes write in between comes on top. Other files do not "
        "count, nor does that of the exporter jsonl."
    ),
    reason="refusing events while the disk has room is for the owner of the disk to decide",
)
FREE_BYTES: Setting[int | None] = Setting(
    name="free_bytes",
    variables=(Variable("OTEL_AUDIT_FREE_BYTES"),),
    kind=ByteCount(0, 1024**4),
    default=None,
    default_text="a tenth of the file system, at most 1 GiB",
    unit="bytes",
    doc=(
        "The free space below which events with outcome success are lost, as on_loss says, unless their rule is "
        "closed. Below a tenth of it, all events are lost. It is measured every second. With 0, events are written "
        "until the disk is full."
    ),
    reason="a flood of successes must not take the room of failures, nor that of everybody else on the disk",
)
RETENTION_DAYS: Setting[int | None] = Setting(
    name="retention_days",
    variables=(Variable("OTEL_AUDIT_RETENTION_DAYS"),),
    kind=WholeNumber(0, 36_500),
    default=None,
    default_text="30; 400 when the journal is the destination (export none)",
    unit="days",
    doc=(
        "How long a segment is kept once every exporter has it. 0: for ever. Events that are not delivered, or in "
        "quarantine, are never removed."
    ),
    reason=(
        "a month is enough to send again what the destination lost. Where there is no other copy, PCI DSS 10.5.1 "
        "asks for 12 months, and a month is added"
    ),
)
RETENTION_BYTES: Setting[int] = Setting(
    name="retention_bytes",
    variables=(Variable("OTEL_AUDIT_RETENTION_BYTES"),),
    kind=ByteCount(0, 1024**5),
    default=0,
    default_text="0",
    unit="bytes",
    doc=(
        "While the segments of the directory hold more than this, delivered ones are removed before their time, the "
        "oldest first. 0: no limit."
    ),
    reason="what may be removed early is for its owner to decide",
)
QUEUE_SIZE: Setting[int] = Setting(
    name="queue_size",
    variables=(Variable("OTEL_AUDIT_QUEUE_SIZE"),),
    kind=WholeNumber(1, 1_000_000),
    default=2048,
    unit="events",
    doc=(
        "Ignored, and unknown in the next version: the queue is the journal, and queue_bytes is its limit in memory "
        "mode."
    ),
    reason="none: it has no effect",
)
QUEUE_BYTES: Setting[int] = Setting(
    name="queue_bytes",
    variables=(Variable("OTEL_AUDIT_QUEUE_BYTES"),),
    kind=ByteCount(1024**2, 4 * 1024**3),
    default=32 * 1024**2,
    default_text="32 MiB",
    unit="bytes",
    doc=(
        "With durability=memory only: how much the journal's files in the directory may hold together, those of all "
        "processes included. When they are full a new event is refused; an old one is never dropped. Delivered "
        "events are removed at once."
    ),
    reason="some 30 000 ordinary events, in half of the 64 MiB that a container has at /dev/shm",
)
BATCH_COUNT: Setting[int] = Setting(
    name="batch_count",
    variables=(Variable("OTEL_AUDIT_BATCH_COUNT"),),
    kind=WholeNumber(1, 10_000),
    default=2048,
    unit="events",
    doc="How many events one export may hold.",
    reason="each export costs a request and a write of the cursor, and 2048 ordinary events stay close to batch_bytes",
    fallbacks=(Variable("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"),),
)
BATCH_BYTES: Setting[int] = Setting(
    name="batch_bytes",
    variables=(Variable("OTEL_AUDIT_BATCH_BYTES"),),
    kind=ByteCount(512 * 1024, 20 * 1024**2),
    default=3 * 1024**2,
    default_text="3 MiB",
    unit="bytes",
    doc=("How many bytes one request may hold, before compression. A single event is sent whatever its size."),
    reason=(
        "gRPC servers refuse messages over 4 MiB unless told otherwise, and a collector refuses HTTP bodies over 20 MiB"
    ),
)
BATCH_DELAY_S: Setting[float] = Setting(
    name="batch_delay_s",
    variables=(Variable("OTEL_AUDIT_BATCH_DELAY_S"),),
    kind=Seconds(0, 600),
    default=1.0,
    unit="s",
    doc="How long a batch that is not full waits for more events.",
    reason="it is OTel's default, and the event is on disk meanwhile",
    fallbacks=(Variable("OTEL_BLRP_SCHEDULE_DELAY", Milliseconds(0, 600)),),
)
BACKOFF_CAP_S: Setting[float] = Setting(
    name="backoff_cap_s",
    variables=(Variable("OTEL_AUDIT_BACKOFF_CAP_S"),),
    kind=Seconds(1, 3600),
    default=60.0,
    unit="s",
    doc="The longest pause between two attempts while the endpoint does not accept events.",
    reason="delivery resumes within a minute after an outage, and a fleet does not hammer an endpoint that is down",
)
CLOSE_TIMEOUT_S: Setting[float] = Setting(
    name="close_timeout_s",
    variables=(Variable("OTEL_AUDIT_CLOSE_TIMEOUT_S"),),
    kind=Seconds(0, 600),
    default=5.0,
    unit="s",
    doc=(
        "How long close() may wait for a turn at the ledger and go on delivering. The rest stays in the journal and "
        "goes out at the next start. For the ledger it waits up to 4 s, even if this is shorter."
    ),
    reason="it is half of the 10 s that container runtimes leave between SIGTERM and SIGKILL",
)
TEXT_CHARS: Setting[int] = Setting(
    name="text_chars",
    variables=(Variable("OTEL_AUDIT_TEXT_CHARS"),),
    kind=WholeNumber(128, 65_536),
    default=2048,
    unit="characters",
    doc=(
        "The longest text in an event, its detail apart. A longer one is cut, and a marker holds its digest. A text "
        "that takes more than twice as many bytes in the line is cut too."
    ),
    reason="no URL or user agent that proxies and browsers pass on is longer in practice",
)
ATTRIBUTE_COUNT: Setting[int] = Setting(
    name="attribute_count",
    variables=(Variable("OTEL_AUDIT_ATTRIBUTE_COUNT"),),
    kind=WholeNumber(1, 32),
    default=32,
    unit="attributes",
    doc="How many attributes of your own one event may have. The others are left out and listed.",
    reason="a record has at most 64, and our own keys take up to half of them",
)
LINE_BYTES: Setting[int] = Setting(
    name="line_bytes",
    variables=(Variable("OTEL_AUDIT_LINE_BYTES"),),
    kind=ByteCount(32 * 1024, 256 * 1024 - 1),
    default=64 * 1024,
    default_text="64 KiB",
    unit="bytes",
    doc="The longest line of the journal. The longest texts of a longer event are cut until it fits.",
    reason="collectors and stores accept it with their default limits; Loki refuses 256 KiB",
)
FILE_MODE: Setting[int] = Setting(
    name="file_mode",
    variables=(Variable("OTEL_AUDIT_FILE_MODE"),),
    kind=FileMode(),
    default=0o600,
    default_text="0600",
    unit="octal",
    doc="The permissions of the journal's files. With 0640 a side-car of the same group can ship them.",
    reason="audit events are personal data",
)
JSONL_PATH: Setting[Path | None] = Setting(
    name="jsonl_path",
    variables=(Variable("OTEL_AUDIT_JSONL_PATH"),),
    kind=AnyPath(),
    default=None,
    default_text="<directory>/export.jsonl",
    doc=(
        "The file that the exporter jsonl appends to. It grows until something else, such as logrotate, renames or "
        "removes it: no limit of the journal counts it."
    ),
    reason="it is beside the journal, on the same volume and under the same permissions",
)
LOG_SUCCESSFUL_READS: Setting[bool] = Setting(
    name="log_successful_reads",
    variables=(Variable("OTEL_AUDIT_LOG_SUCCESSFUL_READS"),),
    kind=Switch(),
    default=True,
    doc="Record reads that succeeded.",
    reason="who read what is the question that is asked most often, and Feast does the same",
)
POLICY: Setting[Path | None] = Setting(
    name="policy",
    variables=(Variable("OTEL_AUDIT_POLICY"),),
    kind=AnyPath(),
    default=None,
    doc=(
        "A YAML file that says which events are recorded, how much of each, and which must not fail: see "
        "docs/policy.md. It is read once, at the start."
    ),
    reason="everything is recorded, and log_successful_reads and on_loss hold for all events",
)
ACCESS_LOG: Setting[Path | None] = Setting(
    name="access_log",
    variables=(Variable("OTEL_AUDIT_ACCESS_LOG"),),
    kind=AnyPath(),
    default=None,
    doc=(
        "The directory of a trail in which commands that show events record who looked, and for what. Where it cannot "
        "be written they show nothing. It is for the commands, not for services: see docs/query.md."
    ),
    reason="not everyone has to show who looked, and those who must keep that trail elsewhere",
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
    ACCESS_LOG,
    TRUSTED_PROXIES,
    FORWARDED_HEADER,
    *PRIVACY_TABLE,
    *PROOF_TABLE,
)

TABLE = CORE_TABLE + OTLP_TABLE
