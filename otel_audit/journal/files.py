"""Name the files in a journal directory, and list its streams.

<stream_id>.<segment>.jsonl    lines, append only
<stream_id>.writer.lock        held while the writer lives
<stream_id>.ship.lock          held by whoever exports the stream
<stream_id>.cursor             how far each exporter has come
<stream_id>.quarantine         lines that were refused: set aside, and released since
ledger.*                       the directory's own log and its keys: see `otel_audit.journal.ledger.files`

Also open, write, replace, sync and copy such files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from otel_audit.errors import JournalUnwritable, remedy_of
from otel_audit.notices import Notices

__all__ = [
    "Exposure",
    "StreamFiles",
    "copy_bytes",
    "cursors_in",
    "exposure_of",
    "is_at",
    "is_device",
    "journal_bytes",
    "journals_near",
    "make_directory",
    "make_private",
    "may_be_journal",
    "open_segment",
    "open_with_mode",
    "replace_file",
    "replacing_file",
    "say_exposure",
    "segment_sizes",
    "segments_in",
    "streams_in",
    "sync_directory",
    "sync_file",
    "write_whole",
    "writer_locks_in",
]


_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_CURSOR = re.compile(rf"(?P<stream>{_UUID})\.cursor\Z")
# Neither a copy that somebody made, nor the file of an exporter, which would keep events out until it is removed.
_OF_A_JOURNAL = re.compile(rf"(?:{_UUID}\.(?:\d{{8}}\.jsonl|[a-z.]+)|ledger\.[0-9a-z.-]+|retention\.state)\Z")
_WRITER_LOCK = re.compile(rf"(?P<stream>{_UUID})\.writer\.lock\Z")
_HINTS_MAX: Final = 3
_LOOKED_AT_MAX: Final = 1000  # a hint must not take long in a directory such as /tmp
_SEGMENT = re.compile(rf"(?P<stream>{_UUID})\.(?P<number>\d{{8}})\.jsonl\Z")
_UNFINISHED: Final = ".unfinished"
_OF_DEVICES: Final = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))  # /dev/stdout may lead to a regular file
_LISTING_MAX_S: Final = 30.0  # for a file system that does not update the time of a directory when a name in it changes
_LISTINGS_MAX: Final = 4
_TICK_NS: Final = 100 * 10**6  # the resolution of the clock with which kernels stamp files
_LONG_TICK_NS: Final = 3 * 10**9  # for file systems whose times are full seconds, or every other one


@dataclass(frozen=True, slots=True)
class StreamFiles:
    """The paths of the files of one stream."""

    directory: Path
    stream_id: str

    def segment(self, number: int) -> Path:
        """Return the path of one segment. Numbers begin at 1."""
        return self.directory / f"{self.stream_id}.{number:08d}.jsonl"

    @property
    def writer_lock(self) -> Path:
        """The lock that its writer holds as long as it lives."""
        return self.directory / f"{self.stream_id}.writer.lock"

    @property
    def ship_lock(self) -> Path:
        """The lock that its exporter holds."""
        return self.directory / f"{self.stream_id}.ship.lock"

    @property
    def cursor(self) -> Path:
        """The progress of each exporter."""
        return self.directory / f"{self.stream_id}.cursor"

    def segments(self) -> list[int]:
        """Return the numbers of the segments that exist, ascending."""
        return list(segments_in(self.directory).get(self.stream_id, ()))

    def segment_from(self, number: int) -> int | None:
        """Return the lowest existing segment that is not below `number`, or None if there is none."""
        if self.segment(number).exists():
            return number
        return next((found for found in self.segments() if found >= number), None)


def streams_in(directory: Path) -> list[StreamFiles]:
    """Return every stream that has a segment in the directory, oldest first."""
    return [StreamFiles(directory, stream_id) for stream_id in segments_in(directory)]


class _Listing(NamedTuple):
    """The segments in a directory, with what shows that they are current: device, inode and time of the last change."""

    stamp: tuple[int, int, int]
    listed_at: float
    segments: Mapping[str, Sequence[int]]


_listings: dict[Path, _Listing] = {}


def segments_in(directory: Path) -> Mapping[str, Sequence[int]]:
    """Return the numbers of the segments of each stream, ascending. The streams are sorted by age, as a UUIDv7 is.

    The directory is listed again only when a name in it has changed. Listing thousands of files takes milliseconds, and
    a reader that waits at the end of a stream calls this several times a second.
    """
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        return {}
    stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
    known = _listings.get(directory)
    listed_at = time.monotonic()
    if known is not None and known.stamp == stamp and listed_at - known.listed_at < _LISTING_MAX_S:
        return known.segments
    # A name that changes within one tick of the file system's clock after this check leaves the same time.
    tick_ns = _TICK_NS if status.st_mtime_ns % 10**9 else _LONG_TICK_NS
    is_settled = time.time_ns() - status.st_mtime_ns - tick_ns > 0
    found: dict[str, list[int]] = {}
    for match in map(_SEGMENT.match, sorted(_names_in(directory))):
        if match is not None:
            found.setdefault(match["stream"], []).append(int(match["number"]))
    if is_settled:
        while len(_listings) >= _LISTINGS_MAX:
            _listings.pop(next(iter(_listings)), None)
        _listings[directory] = _Listing(stamp, listed_at, found)
    return found


def segment_sizes(directory: Path, segments: Mapping[str, Sequence[int]]) -> Mapping[tuple[str, int], int]:
    """Return the size in bytes of each of these segments, by stream and number, without those that are gone.

    Raises:
        OSError: a segment cannot be looked at.
    """
    sizes: dict[tuple[str, int], int] = {}
    for stream_id, numbers in segments.items():
        files = StreamFiles(directory, stream_id)
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                sizes[stream_id, number] = files.segment(number).stat().st_size
    return sizes


def may_be_journal(directory: Path) -> bool:
    """Return True for a directory with any file of a journal, and for an empty one, as before the first event.

    A volume that has just been formatted is empty: its `lost+found` belongs to the file system.

    Raises:
        OSError: the directory cannot be listed.
    """
    names = set(_names_in(directory)) - {"lost+found"}
    return not names or any(map(_OF_A_JOURNAL.match, names))


def journals_near(directory: Path) -> list[Path]:
    """Return journals in a directory, else beside it, else in the working directory: the first three by name.

    For a hint to somebody who named the wrong directory. Nothing that cannot be read is an error here.
    """
    for place in (directory, directory.parent, Path.cwd()):
        if found := list(islice(_journals_in(place, but=directory), _HINTS_MAX)):
            return found
    return []


def _journals_in(place: Path, *, but: Path) -> Iterator[Path]:
    try:
        with os.scandir(place) as listed:
            names = sorted(entry.name for entry in islice(listed, _LOOKED_AT_MAX) if entry.is_dir())
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            if place / name != but and segments_in(place / name):
                yield place / name


def cursors_in(directory: Path) -> list[str]:
    """Return the ids of the streams that have a cursor in the directory."""
    return [match["stream"] for match in map(_CURSOR.match, _names_in(directory)) if match is not None]


def writer_locks_in(directory: Path) -> list[str]:
    """Return the ids of the streams that have a lock file of their writer in the directory, oldest first."""
    return sorted(match["stream"] for match in map(_WRITER_LOCK.match, _names_in(directory)) if match is not None)


def journal_bytes(directory: Path) -> int:
    """Return the size in bytes of all files of journals in the directory. Other files are not counted.

    Raises:
        OSError: the directory cannot be listed.
    """
    used = 0
    with os.scandir(directory) as listed:
        for entry in listed:
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                if _OF_A_JOURNAL.match(entry.name) and entry.is_file(follow_symlinks=False):
                    used += entry.stat(follow_symlinks=False).st_size
    return used


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def make_private(directory: Path) -> None:
    """Make the directory and its parent if they are missing. Afterwards both belong to this user alone.

    This is for a place such as /dev/shm, where every user can make a directory, or a link, with the name that we would
    choose.

    Raises:
        JournalUnwritable: one of them cannot be made, is a link, or others may enter it.
    """
    for path in (directory.parent, directory):
        try:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            found = path.lstat()
        except OSError as error:
            raise JournalUnwritable(_unusable(path, error)) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise JournalUnwritable(
                f"{path}: expected a directory that only this process's user (uid {os.geteuid()}) may enter, got "
                f"{stat.filemode(found.st_mode)} of uid {found.st_uid}; remove it, or set OTEL_AUDIT_DIR to one of "
                "your own"
            )


def make_directory(directory: Path) -> None:
    """Make the directory with mode 0700 if it is missing, and check that it takes new files.

    Raises:
        JournalUnwritable: it cannot be made or written; nothing was changed.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise JournalUnwritable(_unusable(directory, error)) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        is_read_only = bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
        number = errno.EROFS if is_read_only else errno.EACCES
        raise JournalUnwritable(_unusable(directory, OSError(number, os.strerror(number))))


class Exposure(msgspec.Struct, frozen=True):
    """The access of every user of the machine to a directory, and the remedy."""

    says: str
    remedy: str


def exposure_of(directory: Path) -> Exposure | None:
    """Return what the modes of the directory and its parents let every user do to its files, or None.

    Groups are trusted: a side-car may be a member, and many a user is alone in a group.

    Raises:
        OSError: a mode cannot be read.
    """
    directory = directory.resolve()
    mode = directory.stat().st_mode
    if mode & stat.S_IWOTH:
        can = "put files into it, which are taken for events" if mode & stat.S_ISVTX else "remove and replace its files"
        return Exposure(f"{_shown(directory, mode)}: every user can {can}", f"chmod o-rwx {directory}")
    for above in directory.parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            can = "put another directory in its place"
            return Exposure(f"{directory}: {_shown(above, mode)}: every user can {can}", f"chmod o-w {above}")
    return None


def say_exposure(directory: Path, notices: Notices) -> None:
    """Print at start-up what every user can do to the files of the directory. Never raises."""
    with contextlib.suppress(OSError):  # a parent may be unreadable
        if (exposure := exposure_of(directory)) is not None:
            notices.say("permissions", f"{exposure.says}; {exposure.remedy}")


def _shown(path: Path, mode: int) -> str:
    return f"{path} has mode {stat.S_IMODE(mode):04o}"


def open_with_mode(path: Path, flags: int, mode: int) -> int:
    """Open a file, never through a link. If it is missing, make it with this mode whatever the umask.

    Raises:
        OSError: it cannot be opened or made.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            try:
                return os.open(path, flags)
            except FileNotFoundError:
                continue  # removed at this moment
        try:
            # A umask of 022 would remove the group's right to write from 0660, and a side-car could lock nothing.
            os.fchmod(descriptor, mode)
        except OSError:
            pass  # a file system without modes
        except BaseException:  # an asynchronous exception, and nobody else knows the descriptor
            os.close(descriptor)
            raise
        return descriptor


def _unusable(directory: Path, error: OSError) -> str:
    got, remedy = error.strerror or str(error), "mount a writable volume there, or set OTEL_AUDIT_DIR"
    if isinstance(error, FileExistsError):
        got = "a link that leads nowhere" if directory.is_symlink() else "a file"
        remedy = "remove it, or set OTEL_AUDIT_DIR"
    return (
        f"{directory}: expected a directory that this process (uid {os.geteuid()}) can write, got "
        f"{got}; {remedy_of(error, remedy)}"
    )


_BLOCK_BYTES = 1 << 20


def open_segment(path: Path, mode: int) -> int:
    """Open a file for appending and reading, never through a link. If it is missing, make it with this mode."""
    return open_with_mode(path, os.O_RDWR | os.O_APPEND, mode)


def is_at(path: Path, descriptor: int) -> bool:
    """Return True while the open file is the one that others find at the path."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all of the data.

    Raises:
        OSError: a part of it may be written.
    """
    done = 0
    while done < len(data):
        done += os.write(descriptor, data[done:])


def replace_file(path: Path, data: bytes, *, mode: int) -> None:
    """Replace a file by a new one that holds this data. No reader ever sees a part of it.

    Raises:
        OSError: it cannot be written; an earlier file is unchanged.
    """
    with replacing_file(path, mode=mode) as descriptor:
        write_whole(descriptor, data)


@contextmanager
def replacing_file(path: Path, *, mode: int) -> Iterator[int]:
    """Yield a descriptor of a new file, which replaces an earlier one at the end of the block.

    A device or a pipe is written to instead.

    Raises:
        OSError: it cannot be written; an earlier file is unchanged.
    """
    if is_device(path):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        return
    unfinished = path.with_name(path.name + _UNFINISHED)
    unfinished.unlink(missing_ok=True)  # left by a killed run, or made by another user for all to read
    descriptor = open_with_mode(unfinished, os.O_WRONLY | os.O_TRUNC, mode)
    try:
        yield descriptor
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def is_device(path: Path) -> bool:
    """Return True for what a new file must not replace, such as /dev/null: root could, for everybody on the machine."""
    return path.parent in _OF_DEVICES or (path.exists() and not path.is_file())


def copy_bytes(source: int, target: int, length: int) -> None:
    """Append the first `length` bytes of one file to another, or as many as there are.

    Raises:
        OSError: some of them may be appended.
    """
    done = 0
    while done < length and (block := os.pread(source, min(_BLOCK_BYTES, length - done), done)):
        write_whole(target, block)
        done += len(block)


def sync_file(path: Path) -> None:
    """Make the content of a file durable, through a descriptor of our own.

    Raises:
        OSError: a loss of power may still take it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: a loss of power may still take them.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
