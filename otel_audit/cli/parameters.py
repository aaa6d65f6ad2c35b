"""The kinds of values that commands take: paths and numbers, without those that click lets through by mistake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

__all__ = ["GivenNumber", "GivenPath"]

# A year of seconds, and more than any machine can do in one. Neither the kernel nor a thread waits for all numbers.
_HIGHEST: Final = 365 * 86_400.0


class GivenPath(click.Path):
    """A path. An empty one is refused: click would take it for the working directory, and a variable was not set."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True) -> None:
        # Who reads it says more about what is in the way than click, which would look first.
        super().__init__(exists=exists, file_okay=file_okay, readable=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        if not os.fspath(value):
            said = "expected a path, got an empty one; leave it out, or set the variable that it comes from"
            self.fail(said, param, ctx)
        return super().convert(value, param, ctx)


class GivenNumber(click.FloatRange):
    """A number from 0 to a year of seconds. `above_zero`: not 0 itself."""

    def __init__(self, *, above_zero: bool = False) -> None:
        super().__init__(min=0, max=_HIGHEST, min_open=above_zero)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        number = super().convert(value, param, ctx)
        if number != number:  # NaN is neither below nor above a limit
            self.fail(f"expected a number, got {value}", param, ctx)
        return number
