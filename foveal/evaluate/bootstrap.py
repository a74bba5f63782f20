"""Intervals by resampling the items that were asked: of a metric, and of the difference of two arms on the same items.

Every draw takes n of n items with replacement and computes the metric anew. For a difference both arms are drawn together
(paired), so that what is hard for both cancels out. A share of right answers, which resampling calls certain at 0 and 100 %,
gets Wilson's interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES, LEVEL = 2000, 0.95
_Z = 1.959963984540054  # standard normal, 97.5 %
_CHUNK = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where nothing was measured. num: how many items stand behind it."""

    value: float
    low: float
    high: float
    num: int

    def to_json(self) -> dict[str, float | int | None]:
        """Write it out, None for NaN, which JSON has not."""
        plain = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if math.isnan(x) else round(x, 6) for name, x in plain.items()} | {"n": self.num}


Pairs = np.ndarray
"""(n, 2) float64: numerators and denominators of one metric, item by item."""


def ratio(pairs: Pairs) -> float:
    """Return the sum of numerators over the sum of denominators; NaN for 0 / 0."""
    above, below = pairs.sum(0)
    return float(above / below) if below else math.nan


def estimate(strata: Sequence[Pairs], seed: int = 0, resamples: int = RESAMPLES, *, is_share: bool = False) -> Estimate:
    """Estimate a metric over one or more tasks: the mean of the tasks' ratios, each task resampled for itself.

    is_share: every item counts 1 or 0.
    """
    num = sum(map(len, strata))
    value = float(_mean([np.array([ratio(pairs)]) for pairs in strata])[0])
    if is_share and len(strata) == 1 and num and (strata[0][:, 1] == 1).all():
        return Estimate(value, *wilson(float(strata[0][:, 0].sum()), num), num)
    drawn = [_ratios(_resampled(pairs, seed + i, resamples)) for i, pairs in enumerate(strata)]
    return Estimate(value, *_ends(_mean(drawn)), num)


def difference(first: Sequence[Pairs], second: Sequence[Pairs], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Estimate second less first over the same tasks and items; row i of both is the same item."""
    assert [len(pairs) for pairs in first] == [len(pairs) for pairs in second], "the arms were asked different items"
    num = sum(map(len, first))
    value = float(_mean([np.array([ratio(b) - ratio(a)]) for a, b in zip(first, second, strict=True)])[0])
    drawn = []
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        sums = _resampled(np.concatenate([a, b], axis=1), seed + i, resamples)
        drawn.append(_ratios(sums[:, 2:]) - _ratios(sums[:, :2]))
    return Estimate(value, *_ends(_mean(drawn)), num)


def wilson(right: float, num: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    share, square = right / num, _Z * _Z / num
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / num + square / (4 * num)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def _resampled(columns: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Sum the columns (n, k) over each of `resamples` draws: (resamples, k)."""
    num = len(columns)
    if num == 0:
        return np.zeros((resamples, columns.shape[1]))
    if num * resamples <= _CHUNK:
        return _counts(num, seed, resamples) @ columns
    rng, most = np.random.default_rng(seed), max(1, _CHUNK // num)
    sizes = [min(most, resamples - at) for at in range(0, resamples, most)]
    return np.concatenate([_draw(rng, num, size) @ columns for size in sizes])


@lru_cache(maxsize=24)
def _counts(num: int, seed: int, resamples: int) -> np.ndarray:
    """Draw once for all metrics and arms of a task: how often each draw takes each item, (resamples, num) uint8."""
    return _draw(np.random.default_rng(seed), num, resamples).astype(np.uint8)


def _draw(rng: np.random.Generator, num: int, resamples: int) -> np.ndarray:
    return rng.multinomial(num, np.full(num, 1 / num), size=resamples)


def _ratios(sums: np.ndarray) -> np.ndarray:
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """Average over tasks, those aside that measured nothing."""
    table = np.stack(values)
    there = ~np.isnan(table)
    counts = there.sum(0)
    return np.divide(np.where(there, table, 0).sum(0), counts, out=np.full(table.shape[1], np.nan), where=counts > 0)


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return math.nan, math.nan
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
