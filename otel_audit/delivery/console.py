"""Events as they happen, readable, on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Final, TextIO

from rich.console import Console
from rich.text import Text

from otel_audit.delivery.event_text import LineView
from otel_audit.delivery.outcomes import Accepted, Batch, ExportOutcome, Unavailable

__all__ = ["ConsoleExporter", "Terminal"]

_DELAY_S: Final = 0.1  # soon enough to be "as they happen", and a burst is still one write


class Terminal:
    """A text stream that lines are shown on: stderr when none is given, as it is at the time of each write.

    Colour on a terminal only, and not when `NO_COLOR` is set. Source: no-color.org.
    """

    def __init__(self, stream: TextIO | None = None, *, dated: bool = False) -> None:
        self._stream = stream
        self._dated = dated

    def write(self, show: Callable[[LineView], Iterable[Text | None]]) -> None:
        """Write what `show` makes of the view that fits the terminal now, in one piece.

        Raises:
            OSError: the stream does not take it; some of it may have been written.
        """
        stream = self._stream if self._stream is not None else sys.stderr
        if stream is None or stream.closed:
            raise OSError("the stream is closed")
        console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
        view = LineView(width=console.width if console.is_terminal else None, dated=self._dated)
        plain = not console.is_terminal or bool(os.environ.get("NO_COLOR"))
        shown = [_rendered(text, console, plain) for text in show(view) if text is not None]
        if shown:
            _put(stream, "\n".join(shown) + "\n")


class ConsoleExporter:
    """Shows each event on stderr, or on the stream given: one line an event. See `Exporter`."""

    name = "console"
    delay_s = _DELAY_S

    def __init__(self, stream: TextIO | None = None) -> None:
        self._terminal = Terminal(stream)

    def export(self, batch: Batch) -> ExportOutcome:
        """Show the lines. `Unavailable` when the stream does not take them: they are shown again later."""
        try:
            self._terminal.write(lambda view: (view.show(line.content) for line in batch.lines))
        except OSError as error:
            return Unavailable(f"expected a stream that can be written, got {error.strerror or error}")
        return Accepted()

    def close(self) -> None:
        """Nothing to let go of: the stream is not ours."""


def _rendered(text: Text, console: Console, plain: bool) -> str:
    if plain:
        return text.plain
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()


def _put(stream: TextIO, text: str) -> None:
    # A stream in the C locale must not refuse an event for a letter that it cannot show.
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except ValueError as error:  # closed by another thread since we looked
        raise OSError(str(error)) from error
