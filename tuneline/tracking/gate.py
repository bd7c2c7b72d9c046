"""The promotion gate: statistical tests that a model is better in its targets and not worse in its guards.

Both models answer the same items, so the tests are paired. At one-sided confidence, the gain of a target must exceed
the required effect, and the loss of a guard must stay below its margin. An equal model passes a target about one time
in twenty, where `new >= old` passes half of the time. Guards need no correction, because all must hold
(intersection-union test, Berger 1982); several targets are corrected by Holm's method.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tuneline import statistics
from tuneline.bounded_mean import BoundedMeanTest
from tuneline.config.sections.data import MIN_HELD_OUT
from tuneline.config.sections.evaluate import UNIT_INTERVAL_METRICS
from tuneline.config.sections.gate import GateConfig
from tuneline.errors import RecipeError, TrackingError
from tuneline.statistics import PairedTest, format_score

POWER = 0.8
Scores = Mapping[str, Mapping[str, float]]
"""Metric -> item -> score."""


class TooFewItemsError(TrackingError):
    """Fewer than five common items are training rows of neither model."""


class AllItems(BaseModel):
    """The result on all items, including the contaminated ones, which do not count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opponent: float
    candidate: float
    gain: float
    num_items: int


class Finding(BaseModel):
    """The comparison of one metric with one opponent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: str
    metric: str
    role: Literal["target", "guard"]
    test: str
    opponent: float
    candidate: float
    gain: float
    low: float
    needed: float
    """Value that `low` must exceed: the minimum effect of a target, or the negative margin of a guard."""

    p: float
    """The p-value of a true gain of `needed`."""

    level: float
    """Confidence level of this comparison after correction."""

    num_items: int
    num_excluded: int
    """Number of contaminated items that were left out."""

    detectable: float
    """Minimum detectable gain: it passes with a power of 80 %, given the spread of these items."""

    items_needed: int | None
    """Number of items with which the observed gain of a target, or an equal model for a guard, passes with a power of
    80 %; None if there is no such number or it cannot be estimated."""

    passed: bool
    all_items: AllItems | None = None
    num_trained: int | None = 0
    """Number of held-out items left out because one of the two models was trained on them; None if the training rows of
    the opponent are unknown."""

    method: str = ""
    """Name of the test, with the range of scores that it assumes."""

    def sentence(self) -> str:
        """Return the comparison as a sentence, in percentage points."""
        gain, low = (self.show(value, signed=True) for value in (self.gain, self.low))
        if self.role == "target":
            verdict = f"{'above' if self.passed else 'not above'} the required {self.show(self.needed, signed=True)}"
            is_known = self.detectable > self.needed  # without any difference, the spread is unknown
            size = f"; minimum detectable gain {self.show(self.detectable)}" if is_known else ""
        else:
            verdict = f"{'within' if self.passed else 'not within'} the tolerated loss of {self.show(-self.needed)}"
            size = f"; an equal model needs {self.items_needed}" if self.items_needed else ""
        more = f"; {self.method}" if self.method else ""
        if self.trained_on():
            more += f"; {self.trained_on()}"
        if self.all_items:
            with_them = self.show(self.all_items.gain, signed=True)
            more += f"; {self.num_excluded} contaminated items left out; with them {with_them}"
        return (
            f"{self.metric} {self.show(self.candidate)} against {self.show(self.opponent)} of {self.against}: {gain}, "
            f"at {round(100 * self.level, 1):g}% at least {low}, {verdict} "
            f"({self.num_items} items{size}{more})"
        )

    def trained_on(self) -> str:
        """Describe the items that one of the two models was trained on; empty if there are none."""
        if self.num_trained is None:
            return f"{self.against} has no list of training rows, so items that it was trained on may still count"
        return (
            f"{self.num_trained} left out because one of the two models was trained on them" if self.num_trained else ""
        )

    def show(self, value: float, *, signed: bool = False) -> str:
        """Format a value of the metric in its unit."""
        return format_score(self.metric, value, signed=signed)


@dataclass(frozen=True)
class _GateCriterion:
    """A requirement of the gate for one metric, and its key in the recipe."""

    key: str
    metric: str
    role: Literal["target", "guard"]
    needed: float
    score_range: tuple[float, float] | None


@dataclass(frozen=True)
class _Comparison:
    """A criterion with the scores of candidate and opponent on the items that count."""

    criterion: _GateCriterion
    pairs: list[tuple[float, float]]
    test: PairedTest
    method: str
    num_excluded: int
    all_items: AllItems | None
    num_trained: int | None


def evaluate(
    candidate: Scores,
    opponent: Scores,
    against: str,
    config: GateConfig,
    contaminated: Collection[str] = (),
    trained: Collection[str] | None = (),
) -> list[Finding]:
    """Compare a candidate with an opponent on the same items, in every metric of the gate.

    Args:
        candidate: Scores by metric and item.
        opponent: Scores by metric and item.
        against: Name of the opponent for messages.
        config: The gate.
        contaminated: Items found in training rows, left out if the gate is configured so.
        trained: Items that are training rows of one of the two, which are left out; None if unknown.

    Returns:
        Targets, then guards, in the order of the gate.

    Raises:
        RecipeError: A metric of the gate has no scores, or the test does not fit the scores.
        TooFewItemsError: Too few items are training rows of neither.
        TrackingError: The items differ, or there are fewer than five.
    """
    config = config.with_default_metric(list(candidate))
    tables, excluded = (candidate, opponent), (frozenset(contaminated), None if trained is None else frozenset(trained))
    comparisons = [_comparison(criterion, tables, against, config, excluded) for criterion in _criteria(config)]
    targets = [comparison for comparison in comparisons if comparison.criterion.role == "target"]
    guards = [comparison for comparison in comparisons if comparison.criterion.role == "guard"]
    return [
        *_test_targets(targets, against, config),
        *(_finding(comparison, against, config.level) for comparison in guards),
    ]


def failed_findings(findings: Sequence[Finding], config: GateConfig) -> list[Finding]:
    """Return the findings that prevent a promotion: failed guards, and targets that had to pass and did not."""
    failed: list[Finding] = []
    for opponent in dict.fromkeys(finding.against for finding in findings):
        own = [finding for finding in findings if finding.against == opponent]
        targets = [finding for finding in own if finding.role == "target"]
        one_is_enough = config.targets_needed == "any" and any(finding.passed for finding in targets)
        failed += [
            finding for finding in own if not finding.passed and not (finding.role == "target" and one_is_enough)
        ]
    return failed


def _criteria(config: GateConfig) -> list[_GateCriterion]:
    single = not config.targets
    return [
        *(
            _GateCriterion(
                "metric" if single else f"targets.{i}.metric", each.metric, "target", each.min_effect, each.score_range
            )
            for i, each in enumerate(config.all_targets())
        ),
        *(
            _GateCriterion(f"guards.{i}.metric", each.metric, "guard", -each.margin, each.score_range)
            for i, each in enumerate(config.guards)
        ),
    ]


def _comparison(
    criterion: _GateCriterion,
    tables: tuple[Scores, Scores],
    against: str,
    config: GateConfig,
    excluded: tuple[frozenset[str], frozenset[str] | None],
) -> _Comparison:
    for name, table in zip(("the new model", against), tables, strict=True):
        if criterion.metric not in table:
            raise RecipeError(
                f"registry.gate.{criterion.key}: the report of {name} has no {criterion.metric}; it has "
                f"{', '.join(sorted(table)) or 'nothing'}. Set one of those."
            )
    candidate, opponent = (table[criterion.metric] for table in tables)
    if set(candidate) != set(opponent) or len(candidate) < MIN_HELD_OUT:
        raise TrackingError(
            f"The gate compares answers to the same items, at least {MIN_HELD_OUT}; in {criterion.metric} the "
            f"candidate has {len(candidate)}, {against} has {len(opponent)}, and {len(set(candidate) & set(opponent))} "
            "are common. Run the candidate's recipe again, with enough held-out rows: a run scores all models on the "
            "same items."
        )
    contaminated, trained = excluded[0], (excluded[1] or frozenset[str]()) & set(candidate)
    left_out = (contaminated & set(candidate)) - trained if config.exclude_contaminated else frozenset[str]()
    items = sorted(set(candidate) - left_out - trained)
    if len(items) < MIN_HELD_OUT:
        kind = TooFewItemsError if trained else TrackingError
        raise kind(_too_few(criterion, len(candidate), len(left_out), len(trained)))
    pairs = [(float(candidate[item]), float(opponent[item])) for item in items]
    all_items = _all_items(candidate, opponent) if left_out else None
    test, method = _test(criterion, pairs, config)
    return _Comparison(
        criterion, pairs, test, method, len(left_out), all_items, None if excluded[1] is None else len(trained)
    )


def _too_few(criterion: _GateCriterion, num_items: int, num_contaminated: int, num_trained: int) -> str:
    reasons = [
        *([f"{num_trained} were training rows of one of the two models"] if num_trained else []),
        *([f"{num_contaminated} were found in the training rows"] if num_contaminated else []),
    ]
    advice = "Remove them from the training data, add items, or set registry.gate.exclude_contaminated: false."
    if num_trained:
        advice = "Hold out the rows that the other model held out (merge: validation_fraction, split_seed, split_by)."
    return (
        f"Of the {num_items} items of {criterion.metric}, {' and '.join(reasons)}; at least {MIN_HELD_OUT} clean "
        f"items are required. {advice}"
    )


def _all_items(candidate_scores: Mapping[str, float], opponent_scores: Mapping[str, float]) -> AllItems:
    candidate, opponent = (float(np.mean(list(scores.values()))) for scores in (candidate_scores, opponent_scores))
    return AllItems(opponent=opponent, candidate=candidate, gain=candidate - opponent, num_items=len(candidate_scores))


def _test(criterion: _GateCriterion, pairs: list[tuple[float, float]], config: GateConfig) -> tuple[PairedTest, str]:
    """Choose the test by the recipe or by the scores; return it with its description."""
    scores = [score for pair in pairs for score in pair]
    is_binary = statistics.is_binary(scores)
    if config.test == "mcnemar" and not is_binary:
        raise RecipeError(
            f"registry.gate.test: mcnemar compares right and wrong answers, but {criterion.metric} has scores "
            "other than 0 and 1. Set test: auto."
        )
    differences = [candidate - opponent for candidate, opponent in pairs]
    if config.test == "bootstrap" and criterion.role == "target":
        return statistics.PairedBootstrapTest(differences, config.num_resamples), "bootstrap"
    if is_binary and criterion.needed == 0:
        won, lost = (sum(pair == outcome for pair in pairs) for outcome in ((1.0, 0.0), (0.0, 1.0)))
        return statistics.McNemarTest(won, lost, len(pairs)), "exact McNemar test"
    low, high, observed = _range(criterion, scores)
    description = f"{low:.4g} to {high:.4g}{', as observed' if observed else ''}"
    return BoundedMeanTest(differences, low - high), f"test of a bounded mean, scores {description}"


def _range(criterion: _GateCriterion, scores: list[float]) -> tuple[float, float, bool]:
    """Return the smallest and largest possible score of an item, and whether they are only the observed ones."""
    low, high = min(scores), max(scores)
    if criterion.score_range:
        minimum, maximum = criterion.score_range
        if low < minimum or high > maximum:
            raise RecipeError(
                f"registry.gate.{criterion.key.removesuffix('metric')}score_range: {criterion.metric} has scores from "
                f"{low:.6g} to {high:.6g}, and the range is {[minimum, maximum]}. Widen it."
            )
        return minimum, maximum, False
    is_known = criterion.metric in UNIT_INTERVAL_METRICS or criterion.metric.removesuffix("_clean").endswith(
        "_accuracy"
    )
    if is_known and low >= 0 and high <= 1:
        return 0.0, 1.0, False
    return (low, high, True) if low < high else (low - 1, high, True)


def _test_targets(comparisons: list[_Comparison], against: str, config: GateConfig) -> list[Finding]:
    """Test targets in the order of their p-values; after one that fails, Holm's method lets none pass."""
    p_values = [comparison.test.p(comparison.criterion.needed) for comparison in comparisons]
    if config.correction == "none":
        return [_finding(comparison, against, config.level) for comparison in comparisons]
    levels = statistics.holm_levels(p_values, config.level)
    findings: dict[int, Finding] = {}
    for index in sorted(range(len(comparisons)), key=lambda i: p_values[i]):
        finding = _finding(comparisons[index], against, levels[index])
        all_before = all(earlier.passed for earlier in findings.values())
        findings[index] = finding.model_copy(update={"passed": finding.passed and all_before})
    return [findings[index] for index in range(len(comparisons))]


def _finding(comparison: _Comparison, against: str, level: float) -> Finding:
    criterion = comparison.criterion
    candidate, opponent = (np.array(side) for side in zip(*comparison.pairs, strict=True))
    gain, spread = float((candidate - opponent).mean()), float((candidate - opponent).std(ddof=1))
    p = comparison.test.p(criterion.needed)
    detectable, items_needed = _plan(comparison, level, spread, gain if criterion.role == "target" else 0.0)
    return Finding(
        against=against,
        metric=criterion.metric,
        role=criterion.role,
        test=comparison.test.name,
        opponent=float(opponent.mean()),
        candidate=float(candidate.mean()),
        gain=gain,
        low=comparison.test.low(level),
        needed=criterion.needed,
        p=p,
        level=level,
        num_items=len(comparison.pairs),
        num_excluded=comparison.num_excluded,
        detectable=detectable,
        items_needed=items_needed,
        passed=p < 1 - level,
        all_items=comparison.all_items,
        num_trained=comparison.num_trained,
        method=comparison.method,
    )


def _plan(comparison: _Comparison, level: float, spread: float, true_gain: float) -> tuple[float, int | None]:
    """Return the minimum detectable gain, and the number of items with which `true_gain` passes, at 80 % power."""
    test, needed = comparison.test, comparison.criterion.needed
    if isinstance(test, BoundedMeanTest):
        size = test.items_needed(true_gain, needed, level, POWER)
        return test.detectable(needed, level, POWER), size and max(MIN_HELD_OUT, size)
    width = (NormalDist().inv_cdf(level) + NormalDist().inv_cdf(POWER)) * spread
    return needed + width / sqrt(len(comparison.pairs)), _items_needed(true_gain - needed, width)


def _items_needed(distance: float, width: float) -> int | None:
    """Return the number of items that detect a true difference `distance` beyond the requirement, at 80 % power.

    Args:
        distance: Distance of the true difference from the required one.
        width: Spread of the differences times the sum of the quantiles of level and power.
    """
    if distance <= 0 or width == 0:
        return None
    return max(MIN_HELD_OUT, ceil((width / distance) ** 2))
