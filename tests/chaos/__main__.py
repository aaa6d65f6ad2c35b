"""`python -m tests.chaos`: this package, then the stock SDK, under the same faults."""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click
import pytest

from tests.chaos.contenders import ContenderName
from tests.chaos.report import as_json, as_markdown
from tests.chaos.run import Result, run
from tests.servers import COLLECTOR

_BEYOND_S: Final = 600  # of each contender, for starting, delivering and judging


@click.command()
@click.option("--seconds", type=click.FloatRange(5, 3600), default=60.0, show_default=True, help="Of faults, for each.")
@click.option("--seed", type=int, help="Of the faults and of what is logged; drawn and printed when not given.")
@click.option("--ours", "only", flag_value=ContenderName.OURS.value, help="This package alone.")
@click.option("--stock", "only", flag_value=ContenderName.STOCK.value, help="The stock SDK alone.")
@click.option("--retention", is_flag=True, help="Remove from the journal what is delivered, as soon as may be.")
@click.option("--json", "as_one_object", is_flag=True, help="Print the results as JSON.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new directory in which ledger, journal, archive and logs are left.",
)
def main(
    seconds: float, seed: int | None, only: str | None, retention: bool, as_one_object: bool, keep: Path | None
) -> None:
    """Kill, hang and fill the disk of writers, shippers and a real collector, and see what is lost.

    Needs the collector (collector-config/build-collector.sh); root for the disk that is filled. Traffic stays on
    loopback. Exit code 1 when this package lost something, or a number is wrong; the losses of the stock SDK are only
    reported.
    """
    _need_the_collector()
    seed = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    contenders = [ContenderName(only)] if only else list(ContenderName)
    click.echo(f"seed {seed}, {seconds:g} s of faults for each of: {', '.join(contenders)}", err=True)
    _end_in_time(len(contenders) * (seconds + _BEYOND_S))
    with ExitStack() as stack:
        place = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="otel-audit-chaos-")))
        results = [
            run(each, seed=seed, seconds=seconds, place=place / each, tell=_say, retention=retention)
            for each in contenders
        ]
    click.echo(json.dumps(as_json(results), indent=2) if as_one_object else as_markdown(results))
    sys.exit(_judged(results))


def _say(text: str) -> None:
    click.echo(text, err=True)


def _judged(results: list[Result]) -> int:
    for result in results:
        for problem in result.problems:
            click.echo(f"{result.contender}: {problem}", err=True)
    return 0 if all(result.kept_its_word for result in results if result.contender is ContenderName.OURS) else 1


def _need_the_collector() -> None:
    try:
        COLLECTOR.path()
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        raise click.UsageError(str(error)) from None


def _end_in_time(seconds: float) -> None:
    """Whatever happens, everything that was started is ended: on SIGTERM, and when the time is over."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(f"chaos: ended by {signal.Signals(number).name}")

    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
