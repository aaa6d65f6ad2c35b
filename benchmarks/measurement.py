"""Interleaved rounds, and what is said of them: median, fastest, spread."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Series", "interleaved"]


@dataclass(frozen=True, slots=True)
class Series:
    """One number of one contender, over all rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    @property
    def spread(self) -> float:
        """The middle half of the values, from its lowest to its highest, as a share of the median."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return (high - low) / self.median if self.median else 0.0


def interleaved(
    contenders: Mapping[str, Callable[[], Mapping[str, float]]], rounds: int, tell: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Measure every contender once a round, so that whatever else the machine does touches all of them alike.

    Each begins one round before that, which counts for nothing: imports, caches and connections are paid for there.
    """
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(rounds + 1):
        for name in order:
            tell(f"round {number} of {rounds}: {name}")
            gc.collect()
            numbers = contenders[name]()
            if number:
                found[name].append(numbers)
        order = order[1:] + order[:1]  # who comes after whom changes, and with it what is left in the caches
    return {name: _by_number(measured) for name, measured in found.items()}


def _by_number(measured: Sequence[Mapping[str, float]]) -> dict[str, Series]:
    return {number: Series(tuple(each[number] for each in measured)) for number in measured[0]}
