"""Intervals for means of per-item scores, paired where the same items were answered twice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean over items with the ends of its interval."""

    mean: float
    low: float
    high: float
    num_items: int


def bootstrap_mean(
    values: Sequence[float], level: float = 0.95, num_resamples: int = 5000, seed: int = 0, *, one_sided: bool = False
) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron 1979).

    With few items the plain percentiles lie too near; the tails are widened to those of Student's t (Hesterberg 2015,
    "What teachers should know about the bootstrap", expanded percentile).

    Args:
        values: One score an item; for a paired comparison, one difference an item.
        level: Confidence of the interval; of its lower end alone where `one_sided`.
        num_resamples: Draws of as many items, with replacement.
        seed: Of the draws.
        one_sided: The lower end leaves `1 - level` below it, rather than half of that.
    """
    scores = np.asarray(values, dtype=float)
    if scores.size == 0:
        raise ValueError("There are no items, so there is no mean.")
    tail = _expanded((1 - level) if one_sided else (1 - level) / 2, scores.size)
    generator = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // scores.size)
    means = [
        scores[generator.integers(0, scores.size, (min(rows, num_resamples - done), scores.size))].mean(axis=1)
        for done in range(0, num_resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Interval(float(scores.mean()), float(low), float(high), int(scores.size))


def bootstrap_macro(
    strata: Sequence[Sequence[float]], level: float = 0.95, num_resamples: int = 5000, seed: int = 0
) -> Interval:
    """Return the mean of the means of strata, with its interval from resamples within each stratum.

    Args:
        strata: Scores of the items of each stratum, like the subjects of an exam.
        level: Confidence of the two-sided interval.
        num_resamples: Draws of as many items in each stratum, with replacement.
        seed: Of the draws.
    """
    groups = [np.asarray(each, dtype=float) for each in strata]
    if not groups or any(each.size == 0 for each in groups):
        raise ValueError("A stratum has no items, so it has no mean.")
    generator = np.random.default_rng(seed)
    total = np.zeros(num_resamples)
    for each in groups:
        rows = max(1, 2_000_000 // each.size)
        for done in range(0, num_resamples, rows):
            count = min(rows, num_resamples - done)
            total[done : done + count] += each[generator.integers(0, each.size, (count, each.size))].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(total / len(groups), [tail, 1 - tail])
    mean = float(np.mean([each.mean() for each in groups]))
    return Interval(mean, float(low), float(high), sum(each.size for each in groups))


def _expanded(tail: float, num_items: int) -> float:
    """Return the share of resamples to leave out on one side, so that the interval is as wide as Student's t."""
    if num_items < 2:
        return tail
    from scipy.stats import norm, t

    return float(norm.cdf(np.sqrt(num_items / (num_items - 1)) * t.ppf(tail, num_items - 1)))
