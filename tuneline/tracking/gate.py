"""The gate: is the new model better, or only luckier?

The same items were answered by both, so differences are taken item by item and their mean's one-sided bootstrap
interval must lie above the wanted gain. Against an equal model this passes about one time in twenty, where `new >=
old` passes half of the time.
"""

from collections.abc import Mapping
from math import sqrt
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

from tuneline import statistics
from tuneline.config.data import FEWEST_HELD_OUT
from tuneline.config.evaluate import GateConfig
from tuneline.errors import TrackingError

POWER = 0.8


class Finding(BaseModel):
    """One comparison with one opponent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: str
    metric: str
    opponent: float
    candidate: float
    gain: float
    low: float
    needed: float
    level: float
    num_items: int
    detectable: float
    """Smallest true gain that this gate lets pass in 8 of 10 tries, given these items' spread."""

    passed: bool

    def sentence(self) -> str:
        """Say it in words, in points of a hundred."""
        verdict = "above" if self.passed else "not above"
        return (
            f"{self.metric} {100 * self.candidate:.1f} against {100 * self.opponent:.1f} of {self.against}: "
            f"{100 * self.gain:+.1f}, at {self.level:.0%} at least {100 * self.low:+.1f}, {verdict} the "
            f"{100 * self.needed:.1f} asked for ({self.num_items} items, which detect {100 * self.detectable:.1f})"
        )


def judge(candidate: Mapping[str, float], opponent: Mapping[str, float], against: str, config: GateConfig) -> Finding:
    """Compare a candidate with an opponent on the same items.

    Args:
        candidate: Score by item.
        opponent: Score by item.
        against: Name of the opponent, for the sentence.
        config: Metric, wanted gain, level.

    Raises:
        TrackingError: The items differ, or there are fewer than five.
    """
    if set(candidate) != set(opponent) or len(candidate) < FEWEST_HELD_OUT:
        common = len(set(candidate) & set(opponent))
        raise TrackingError(
            f"The gate compares answers to the same items, at least {FEWEST_HELD_OUT}; the candidate has "
            f"{len(candidate)}, "
            f"{against} has {len(opponent)}, and {common} are common. Evaluate both on one set."
        )
    items = sorted(candidate)
    differences = np.array([candidate[item] - opponent[item] for item in items])
    interval = statistics.bootstrap_mean(
        differences.tolist(), level=config.level, num_resamples=config.num_resamples, one_sided=True
    )
    quantiles = NormalDist().inv_cdf(config.level) + NormalDist().inv_cdf(POWER)
    return Finding(
        against=against,
        metric=config.metric,
        opponent=float(np.mean([opponent[item] for item in items])),
        candidate=float(np.mean([candidate[item] for item in items])),
        gain=interval.mean,
        low=interval.low,
        needed=config.min_gain,
        level=config.level,
        num_items=interval.num_items,
        detectable=config.min_gain + quantiles * float(differences.std(ddof=1)) / sqrt(len(items)),
        passed=interval.low > config.min_gain,
    )
