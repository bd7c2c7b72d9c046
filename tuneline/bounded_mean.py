"""A one-sided test of the mean of scores with a known range (Gaffke 2005; Learned-Miller and Thomas 2019).

Unseen scores count: one item with the worst possible score is added, each item gets a weight from an exponential
distribution, and the p-value is the probability that the weighted mean does not exceed the bound. So 71 items without a
loss still allow a loss of 4.1 points (arXiv:1905.06208), where a bootstrap of equal differences has no width. For
scores with two values, one of them the worst, this is the exact binomial bound of Clopper and Pearson. For all other
distributions the level is a conjecture without a counterexample since 2005; the tests enumerate thousands of
distributions with three values, and sample others.

The probability is an integral of the weights' moment generating function along a line in the complex plane (Bromwich
1926), through its saddle point, so that small p-values are exact, too, and the result depends neither on random numbers
nor on the order of items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, inf, pi, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

MAX_ITEMS = 10_000_000
"""Largest recommended number of items."""

STEP, BLOCK, NEGLIGIBLE = 0.09, 16, -36.0
"""Step of the trapezoidal rule, points per batch, and the logarithm of the largest neglected term, relative to the
largest term."""

MAX_VALUES = 2048
"""Number of distinct scores beyond which neighbors are replaced by their mean, so that 14,000 items take seconds, not
minutes; the loss is less than a millionth of their variance."""


@dataclass(frozen=True)
class BoundedMeanTest:
    """The test, for differences of scores.

    Args:
        differences: One per item.
        worst: Smallest difference that an item can have.
    """

    differences: Sequence[float]
    worst: float
    name: str = "bounded_mean"

    def p(self, bound: float) -> float:
        """Return the p-value of a true mean of at most `bound`, in [0, 1]."""
        return self._p(bound)

    def low(self, level: float) -> float:
        """Return the lower confidence limit of the true mean at `level`."""
        highest = max(self.differences)
        if highest <= self.worst:
            return self.worst
        return _root(lambda bound: self._p(bound) - (1 - level), self.worst, highest)

    def detectable(self, needed: float, level: float, power: float) -> float:
        """Return the smallest true mean for which the test rejects `needed` with probability `power`.

        The spread around that mean is assumed to be the observed one.
        """
        mean, spread = self._moments
        margin = NormalDist().inv_cdf(power) * spread / sqrt(len(self.differences))

        def missing(true_mean: float) -> float:
            return (1 - level) - self._p(needed, shift=true_mean - margin - mean)

        upper = needed + margin + (needed - self.worst) + max(self.differences) - min(self.differences)
        while missing(upper) < 0:
            upper = needed + 2 * (upper - needed)
        return _root(missing, needed, upper)

    def items_needed(self, true_mean: float, needed: float, level: float, power: float) -> int | None:
        """Return the number of items with which the test rejects `needed` with probability `power`.

        Args:
            true_mean: Assumed true mean; the spread around it is assumed to be the observed one.
            needed: The bound.
            level: Confidence of the test.
            power: Probability of a rejection.

        Returns:
            None if the true mean does not exceed the bound, or if more than ten million items are needed.
        """
        mean, spread = self._moments
        quantile = NormalDist().inv_cdf(power)

        def enough(size: int) -> bool:
            shift = true_mean - mean - quantile * spread / sqrt(size)
            return self._p(needed, shift=shift, size=size) < 1 - level

        if true_mean <= needed:
            return None
        above = 1
        while not enough(above):
            above *= 2
            if above > MAX_ITEMS:
                return None
        below = above // 2
        while above - below > max(1, below // 1000):
            center = (below + above) // 2
            below, above = (below, center) if enough(center) else (center, above)
        return above

    @cached_property
    def _moments(self) -> tuple[float, float]:
        scores = np.asarray(self.differences, dtype=float)
        return float(scores.mean()), float(scores.std(ddof=1))

    @cached_property
    def _distinct_values(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the distinct values and their numbers of items."""
        scores = np.asarray(self.differences, dtype=float)
        values, counts = np.unique(scores, return_counts=True)
        if values.size > MAX_VALUES:
            bins = ((scores - values[0]) * (MAX_VALUES / (values[-1] - values[0]))).astype(int)
            counts, sums = np.bincount(bins), np.bincount(bins, weights=scores)
            values, counts = sums[counts > 0] / counts[counts > 0], counts[counts > 0]
        return values, counts.astype(float)

    def _p(self, bound: float, *, shift: float = 0.0, size: int | None = None) -> float:
        """Return the p-value for differences moved by `shift` and scaled to `size` items."""
        values, counts = self._distinct_values
        shapes = counts * ((size or len(self.differences)) / len(self.differences))
        centered = np.concatenate([values + shift, [min(self.worst, float(values[0]) + shift)]]) - bound
        return _below_zero(centered, np.concatenate([shapes, [1.0]]))


def _below_zero(values: NDArray[np.float64], shapes: NDArray[np.float64]) -> float:
    """Return the probability that a sum of gamma variables with these shapes, times these values, is at most 0."""
    if values.max() <= 0:
        return 1.0
    if values.min() >= 0:
        return 0.0
    values = values / np.abs(values).max()
    line = _saddle_point(values, shapes)
    nearest = 0.5 / sqrt(float(shapes @ values**2))
    if abs(line) < nearest:  # too close to the pole at 0
        line = max(-nearest, 0.5 / float(values.min()))
    log_terms, weights = _integrand_along(line, values, shapes)
    tail = float(np.real(np.exp(log_terms - log_terms[0].real) @ weights)) * exp(min(log_terms[0].real, 700.0))
    return min(max(-tail if line < 0 else 1 - tail, 0.0), 1.0)


def _saddle_point(values: NDArray[np.float64], shapes: NDArray[np.float64]) -> float:
    """Return the real point, between the two poles, at which the moment generating function is smallest."""
    low, high = 1 / float(values.min()), 1 / float(values.max())

    def slope(point: float) -> float:
        return float(shapes @ (values / (1 - values * point)))

    margin = 1e-12 * (high - low)
    return _root(slope, low + margin, high - margin)


def _integrand_along(
    line: float, values: NDArray[np.float64], shapes: NDArray[np.float64]
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return the logarithms of the integrand's moment generating function along a line, and their weights.

    Steps along the line grow (`sinh`), because the integrand is steep near a pole.
    """
    scale = 1 / sqrt(float(shapes @ (values / (1 - values * line)) ** 2))
    terms, weights = list[NDArray[np.complex128]](), list[NDArray[np.complex128]]()
    first, top = 0, -inf
    while True:
        offsets = STEP * np.arange(first, first + BLOCK)
        points = line + 1j * scale * np.sinh(offsets)
        logs = -(np.log(1 - np.outer(points, values)) @ shapes)
        weight = STEP * scale * np.cosh(offsets) / points / pi
        if first == 0:
            weight[0] /= 2
        terms.append(logs)
        weights.append(weight)
        size = logs.real + np.log(np.abs(weight))
        top = max(top, float(size.max()))
        if size[-1] < top + NEGLIGIBLE:
            return np.concatenate(terms), np.concatenate(weights)
        first += BLOCK


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of an increasing function, or the nearest end of the interval."""
    from scipy.optimize import brentq

    if function(low) >= 0:
        return low
    if function(high) <= 0:
        return high
    return float(brentq(function, low, high, xtol=1e-13, rtol=1e-12))
