"""What several commands share: parameters such as a directory or an age, the record of a look, and signals that end it.

The directory is an argument, else `OTEL_AUDIT_DIR`, else that of the settings. The parameter types also refuse values
that click would accept by mistake.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import click

from otel_audit.access import AccessLog, Look
from otel_audit.errors import AuditError, ConfigError
from otel_audit.journal.files import journals_near, segments_in
from otel_audit.journal.ledger import former
from otel_audit.journal.ledger.files import LedgerFiles
from otel_audit.moments import length_s, moment_ns
from otel_audit.notices import escaped
from otel_audit.settings import Settings

if TYPE_CHECKING:
    from click import ParamType
    from rich.console import Console
else:

    class ParamType(click.ParamType):
        """click's type of a parameter, which takes the type of its value only from click 8.4 on."""

        def __class_getitem__(cls, value_type):
            return cls


__all__ = [
    "GivenAge",
    "GivenCount",
    "GivenFile",
    "GivenMoment",
    "GivenNumber",
    "GivenPath",
    "GivenWord",
    "ParamType",
    "Stop",
    "any_directory_argument",
    "directory_argument",
    "existing_directory",
    "free_bytes_of_settings",
    "plain_console",
    "recorded_access",
    "say_if_empty",
    "unreadable",
]


# A year of seconds. Neither the kernel nor a thread can wait for every number.
_HIGHEST: Final = 365 * 86_400.0
_SLICE_S: Final = 0.5
_NO_WIDTH: Final = 1_000_000


class GivenPath(click.Path):
    """A path. An empty one is refused.

    It usually comes from an unset variable, and click would take it for the working directory.
    """

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        # `readable=False`, since the code that reads the path explains a failure better than click.
        super().__init__(file_okay=file_okay, dir_okay=dir_okay, readable=False, path_type=Path)
        self._must_exist = exists

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        if not os.fspath(value):
            said = "expected a path, got an empty one; leave it out, or set the variable that should hold it"
            self.fail(said, param, ctx)
        shown = f"{escaped(str(value))!r}"
        if self._must_exist and (got := _missing(value)):
            self.fail(f"expected a path that exists, got {shown}, {got}; correct it", param, ctx)
        # Unlike the methods of `Path`, these do not raise for a path that is too long or not permitted.
        if not self.dir_okay and os.path.isdir(value):
            self.fail(f"expected a file, got {shown}, which is a directory; name a file in it", param, ctx)
        if not self.file_okay and os.path.isfile(value):
            self.fail(f"expected a directory, got {shown}, which is a file; name another place", param, ctx)
        return super().convert(value, param, ctx)


def _missing(path: str | os.PathLike[str]) -> str:
    """Return why nothing is found at a path, or an empty text if something is."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return "which is a link that leads nowhere" if os.path.islink(path) else "which does not exist"
    except OSError as error:
        is_loop = error.errno == errno.ELOOP
        return "which is a link that leads nowhere" if is_loop else f"which cannot be reached: {error.strerror}"
    return ""


class GivenFile(click.File):
    """A file that is read as bytes, or - for stdin."""

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            reason = error.message.rpartition(": ")[2]
            said = f"expected a file that can be read, got {escaped(str(value))!r}: {reason}; correct the path"
            self.fail(said, param, ctx)


class GivenCount(click.IntRange):
    """A whole number between two limits, or from one limit on."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            limits = f"from {self.min} {'on' if self.max is None else f'to {self.max}'}"
            self.fail(f"expected a whole number {limits}, got {escaped(str(value))!r}; correct it", param, ctx)


class GivenWord(click.Choice):  # type: ignore[type-arg]  # not generic before click 8.2
    """One of several words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        if value not in self.choices:
            words = ", ".join(self.choices)
            self.fail(f"expected one of {words}, got {escaped(str(value))!r}; correct it", param, ctx)
        return super().convert(value, param, ctx)


class GivenNumber(click.FloatRange):
    """A number from 0 to a year of seconds. With `above_zero`, 0 itself is refused."""

    def __init__(self, *, above_zero: bool = False) -> None:
        super().__init__(min=0, max=_HIGHEST, min_open=above_zero)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        number = math.nan  # which is neither below nor above a limit
        with suppress(click.BadParameter):
            number = super().convert(value, param, ctx)
        if number == number:
            return number
        least = "above 0" if self.min_open else "from 0"
        said = f"expected a number {least} to {_HIGHEST:.0f}, got {escaped(str(value))!r}; correct it"
        return self.fail(said, param, ctx)


class GivenAge(ParamType[float]):
    """A length of time in seconds, written as 90s, 15m, 24h or 7d."""

    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See `click.ParamType`."""
        if isinstance(value, float):
            return value
        if (seconds := length_s(str(value))) is None:
            self.fail(
                f"expected an age such as 90s, 15m, 24h or 7d, got {escaped(str(value))!r}; correct it", param, ctx
            )
        return float(seconds)


class GivenMoment(ParamType[int]):
    """A moment in nanoseconds since 1970, written as an age, the name of a day, or a time in ISO 8601, in UTC."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See `click.ParamType`."""
        if isinstance(value, int):
            return value
        try:
            return moment_ns(str(value))
        except AuditError as error:
            self.fail(escaped(str(error)), param, ctx)


F = TypeVar("F", bound=Callable[..., Any])


def directory_argument(command: F) -> F:
    """Add an argument `directory: Path` to the command. The directory must exist."""
    return _argument(existing_directory)(command)


def any_directory_argument(command: F) -> F:
    """Add an argument `directory: Path` to the command. The directory need not exist."""
    return _argument(lambda ctx, given: given or _from_settings(ctx))(command)


def _argument(directory_of: Callable[[click.Context, Path | None], Path]) -> Callable[[F], F]:
    return click.argument(
        "directory",
        metavar="[DIR]",
        required=False,
        envvar="OTEL_AUDIT_DIR",
        type=GivenPath(),
        callback=lambda ctx, _, given: directory_of(ctx, given),
    )


def existing_directory(ctx: click.Context, given: Path | None) -> Path:
    """Return the given directory, or that of the settings.

    Raises:
        UsageError: it does not exist.
    """
    directory = given or _from_settings(ctx)
    if not directory.is_dir():
        what = "is not a directory" if os.path.lexists(directory) else "does not exist"
        raise click.UsageError(
            f"expected the directory of a journal, got {str(directory)!r}, which {what}; "
            f"give DIR or set OTEL_AUDIT_DIR{_near(directory)}",
            ctx,
        )
    return directory


def free_bytes_of_settings() -> int | None:
    """Return the floor of free space in this environment, or the default if the settings are not valid."""
    try:
        return Settings.load(os.environ).free_bytes
    except ConfigError:
        return None


def plain_console() -> Console:
    """Return where a command shows a result to people: stdout, as wide as the terminal. A file or a pipe has no width.

    Nothing in the texts is highlighted or read as markup.
    """
    from rich.console import Console  # not at the top: JSON needs none of it

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            """Raise the error as it came. Rich would exit with 1, which says that something needs a look."""
            raise

    console = Plain(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = _NO_WIDTH
    return console


def unreadable(directory: Path, error: OSError) -> click.UsageError:
    """Return the error for a journal that cannot be read."""
    where = directory if error.filename is None else error.filename
    return click.UsageError(
        f"{escaped(str(where))}: expected a journal that uid {os.geteuid()} can read, got {error.strerror or error}; "
        "run it as the user of the service, or let a group read its files (OTEL_AUDIT_FILE_MODE=0640)"
    )


def say_if_empty(directory: Path) -> None:
    """Warn on stderr if there is no stream, since in a mistaken directory silence would look like good news."""
    if segments_in(directory):
        return
    if LedgerFiles(directory).segments() or former.is_begun(directory):
        said = "no stream is left in this directory, only its ledger: `otel-audit status` counts what retention removed"
    else:
        said = (
            "no stream is in this directory; if that is unexpected, give DIR or set OTEL_AUDIT_DIR; "
            f"`otel-audit config` shows the directory of a service{_near(directory)}"
        )
    click.echo(f"{escaped(str(directory))}: {said}", err=True)


def _near(directory: Path) -> str:
    """Return a hint at journals near a directory that is not one, or an empty text if there are none."""
    found = journals_near(directory)
    return f"; did you mean {' or '.join(escaped(str(each)) for each in found)}?" if found else ""


def _from_settings(ctx: click.Context) -> Path:
    try:
        settings = Settings.load(os.environ)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    return settings.directory


class Stop:
    """While entered, SIGTERM, Ctrl-C and the signals in `also` request an end instead of ending the process.

    A signal that is ignored, as SIGHUP is under `nohup`, stays ignored.
    """

    def __init__(self, *also: signal.Signals) -> None:
        self._handled = _handled((signal.SIGTERM, signal.SIGINT, *also), self._ask)
        self.asked = False
        self._asked: SimpleQueue[None] = SimpleQueue()  # its `put` may come in while the same thread is in its `get`

    def __call__(self) -> bool:
        """Return True once a signal has requested the end."""
        return self.asked

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when a signal requests the end, or after this many seconds."""
        # In slices: a signal that arrives while this thread waits for the interpreter, just before it goes to sleep, is
        # noticed only when the sleep is over. Its handler has not run then, and `put` wakes nobody.
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            with suppress(Empty):
                self._asked.get(timeout=min(left_s, _SLICE_S))
                return

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._asked.put(None)

    def __enter__(self) -> Self:
        self._handled.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._handled.__exit__(kind, error, at)


@contextmanager
def recorded_access(
    command: str,
    sources: Sequence[str],
    filters: Sequence[str] = (),
    *,
    since_ns: int | None = None,
    until_ns: int | None = None,
) -> Iterator[Look]:
    """Record one look of a command, if there is an access trail: see `AccessLog.look`.

    With or without one, SIGTERM and SIGHUP end the block as Ctrl-C does, so that the end is recorded and no temporary
    file is left. A signal that is ignored, as SIGHUP is under `nohup`, stays ignored.

    Raises:
        AccessUnrecorded: the block has not run.
    """
    with (
        AccessLog.from_environment() as log,
        _ended_by_signals(),
        log.look(command, sources, filters, since_ns=since_ns, until_ns=until_ns) as look,
    ):
        yield look


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled((signal.SIGTERM, signal.SIGHUP), _interrupt):
        yield


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handled(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle these signals in the block, except those that are ignored, as SIGHUP is under `nohup`."""
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    former = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
