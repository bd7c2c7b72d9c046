"""The gate: is the new model better, or only luckier, and has it forgotten nothing?

The same items were answered by both, so differences are taken item by item. A target's gain must surely exceed what the
recipe asks for, a guard's loss must surely stay below its margin, "surely" at one-sided confidence. Against an equal
model a target passes about one time in twenty, where `new >= old` passes half of the time. Guards need no correction:
all of them must hold (an intersection-union test, Berger 1982, keeps its level); of several targets, Holm's does.
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
    """Of the items that both answered, fewer than five are training rows of neither."""


class AllItems(BaseModel):
    """What the numbers would be with the contaminated items, which decide nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opponent: float
    candidate: float
    gain: float
    num_items: int


class Finding(BaseModel):
    """One comparison of one metric with one opponent."""

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
    """What `low` must exceed: the smallest effect of a target; of a guard the margin, below zero."""

    p: float
    """How likely data like these are where the true gain is just `needed`."""

    level: float
    """Confidence of this one comparison, after correction."""

    num_items: int
    num_excluded: int
    """Contaminated items that were left out."""

    detectable: float
    """Smallest true gain that this gate lets pass in 8 of 10 tries, given these items' spread."""

    items_needed: int | None
    """With so many items, a target's gain, were it true, would pass in 8 of 10 tries; and an equal model a guard. None
    where no number would do, or none can be told."""

    passed: bool
    all_items: AllItems | None = None
    num_trained: int | None = 0
    """Held-out items that one of the two models was trained on, and that were left out; None where the opponent's
    version does not say what it was trained on."""

    method: str = ""
    """The test in words, with the range of scores that it relies on."""

    def sentence(self) -> str:
        """Say it in words, in points of a hundred."""
        gain, low = (self.show(value, signed=True) for value in (self.gain, self.low))
        if self.role == "target":
            verdict = f"{'above' if self.passed else 'not above'} the {self.show(self.needed)} asked for"
            knows = self.detectable > self.needed  # answers without any difference tell nothing of their spread
            size = f", which detect {self.show(self.detectable)}" if knows else ""
        else:
            verdict = f"{'within' if self.passed else 'not within'} the loss of {self.show(-self.needed)} tolerated"
            size = f"; an equal model needs {self.items_needed}" if self.items_needed else ""
        more = f"; {self.method}" if self.method else ""
        if self.trained_on():
            more += f"; {self.trained_on()}"
        if self.all_items:
            with_them = self.show(self.all_items.gain, signed=True)
            more += f"; {self.num_excluded} contaminated ones left out, with them {with_them}"
        return (
            f"{self.metric} {self.show(self.candidate)} against {self.show(self.opponent)} of {self.against}: {gain}, "
            f"at {round(100 * self.level, 1):g}% at least {low}, {verdict} "
            f"({self.num_items} items{size}{more})"
        )

    def trained_on(self) -> str:
        """Say what became of items that one of the two models was trained on; empty where there are none."""
        if self.num_trained is None:
            return f"{self.against} keeps no list of its training rows, so those among the items still count"
        return f"{self.num_trained} left out that one of the two was trained on" if self.num_trained else ""

    def show(self, value: float, *, signed: bool = False) -> str:
        """Write a value of the metric in its unit."""
        return format_score(self.metric, value, signed=signed)


@dataclass(frozen=True)
class _Asked:
    """What the gate asks of one metric, and under which key."""

    key: str
    metric: str
    role: Literal["target", "guard"]
    needed: float
    score_range: tuple[float, float] | None


@dataclass(frozen=True)
class _Question:
    """The answers to it: on the items that count, the candidate's score and the opponent's."""

    asked: _Asked
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
    dirty: Collection[str] = (),
    trained: Collection[str] | None = (),
) -> list[Finding]:
    """Compare a candidate with an opponent on the same items, in every metric that the gate asks for.

    Args:
        candidate: Scores by metric and item.
        opponent: Scores by metric and item.
        against: Name of the opponent, for the sentence.
        config: The gate.
        dirty: Items found in training rows, which the gate may leave out.
        trained: Items that are training rows of one of the two, which are left out; None where that is not known.

    Returns:
        Targets, then guards, as the gate lists them.

    Raises:
        RecipeError: A score lacks a metric that is asked for, or the test does not suit its scores.
        TooFewItemsError: Too few items are training rows of neither.
        TrackingError: The items differ, or there are fewer than five.
    """
    config = config.with_default_metric(list(candidate))
    tables, excluded = (candidate, opponent), (frozenset(dirty), None if trained is None else frozenset(trained))
    questions = [_question(asked, tables, against, config, excluded) for asked in _asked(config)]
    targets = [question for question in questions if question.asked.role == "target"]
    guards = [question for question in questions if question.asked.role == "guard"]
    return [
        *_of_targets(targets, against, config),
        *(_finding(question, against, config.level) for question in guards),
    ]


def failed_findings(findings: Sequence[Finding], config: GateConfig) -> list[Finding]:
    """Return what stands against a promotion: guards that fell, and targets that did not rise as they had to."""
    against: list[Finding] = []
    for opponent in dict.fromkeys(finding.against for finding in findings):
        mine = [finding for finding in findings if finding.against == opponent]
        targets = [finding for finding in mine if finding.role == "target"]
        one_is_enough = config.targets_needed == "any" and any(finding.passed for finding in targets)
        against += [each for each in mine if not each.passed and not (each.role == "target" and one_is_enough)]
    return against


def _asked(config: GateConfig) -> list[_Asked]:
    single = not config.targets
    return [
        *(
            _Asked(
                "metric" if single else f"targets.{i}.metric", each.metric, "target", each.min_effect, each.score_range
            )
            for i, each in enumerate(config.all_targets())
        ),
        *(
            _Asked(f"guards.{i}.metric", each.metric, "guard", -each.margin, each.score_range)
            for i, each in enumerate(config.guards)
        ),
    ]


def _question(
    asked: _Asked,
    tables: tuple[Scores, Scores],
    against: str,
    config: GateConfig,
    excluded: tuple[frozenset[str], frozenset[str] | None],
) -> _Question:
    for who, table in zip(("the new model", against), tables, strict=True):
        if asked.metric not in table:
            raise RecipeError(
                f"registry.gate.{asked.key}: the report of {who} has no {asked.metric}; it has "
                f"{', '.join(sorted(table)) or 'nothing'}. Set one of those."
            )
    mine, theirs = (table[asked.metric] for table in tables)
    if set(mine) != set(theirs) or len(mine) < MIN_HELD_OUT:
        raise TrackingError(
            f"The gate compares answers to the same items, at least {MIN_HELD_OUT}; in {asked.metric} the candidate "
            f"has {len(mine)}, {against} has {len(theirs)}, and {len(set(mine) & set(theirs))} are common. Run the "
            "candidate's recipe again, with enough held-out rows: a run scores all on one set."
        )
    dirty, trained = excluded[0], (excluded[1] or frozenset[str]()) & set(mine)
    left_out = (dirty & set(mine)) - trained if config.exclude_contaminated else frozenset[str]()
    items = sorted(set(mine) - left_out - trained)
    if len(items) < MIN_HELD_OUT:
        kind = TooFewItemsError if trained else TrackingError
        raise kind(_too_few(asked, len(mine), len(left_out), len(trained)))
    pairs = [(float(mine[item]), float(theirs[item])) for item in items]
    whole = _all_items(mine, theirs) if left_out else None
    test, method = _test(asked, pairs, config)
    return _Question(asked, pairs, test, method, len(left_out), whole, None if excluded[1] is None else len(trained))


def _too_few(asked: _Asked, num_items: int, num_dirty: int, num_trained: int) -> str:
    reasons = [
        *([f"{num_trained} were training rows of one of the two models"] if num_trained else []),
        *([f"{num_dirty} were found in the training rows"] if num_dirty else []),
    ]
    advice = "Take them out of the training data, give more items, or set registry.gate.exclude_contaminated: false."
    if num_trained:
        advice = "Hold out the rows that the other model held out (merge: validation_fraction, split_seed, split_by)."
    return (
        f"Of the {num_items} items of {asked.metric} {' and '.join(reasons)}, and {MIN_HELD_OUT} clean ones are the "
        f"fewest that can be measured. {advice}"
    )


def _all_items(mine: Mapping[str, float], theirs: Mapping[str, float]) -> AllItems:
    candidate, opponent = (float(np.mean(list(scores.values()))) for scores in (mine, theirs))
    return AllItems(opponent=opponent, candidate=candidate, gain=candidate - opponent, num_items=len(mine))


def _test(asked: _Asked, pairs: list[tuple[float, float]], config: GateConfig) -> tuple[PairedTest, str]:
    """Choose the test: what the recipe says, or what the scores are; return it with its name in words."""
    scores = [score for pair in pairs for score in pair]
    right_or_wrong = statistics.is_binary(scores)
    if config.test == "mcnemar" and not right_or_wrong:
        raise RecipeError(
            f"registry.gate.test: mcnemar compares right and wrong answers, and {asked.metric} has other scores. Set "
            "test: auto."
        )
    differences = [mine - theirs for mine, theirs in pairs]
    if config.test == "bootstrap" and asked.role == "target":
        return statistics.PairedBootstrapTest(differences, config.num_resamples), "bootstrap"
    if right_or_wrong and asked.needed == 0:
        won, fell = (sum(pair == way for pair in pairs) for way in ((1.0, 0.0), (0.0, 1.0)))
        return statistics.McNemarTest(won, fell, len(pairs)), "exact test of McNemar"
    low, high, seen = _range(asked, scores)
    words = f"{low:.4g} to {high:.4g}{', as far as seen' if seen else ''}"
    return BoundedMeanTest(differences, low - high), f"test of a bounded mean, scores {words}"


def _range(asked: _Asked, scores: list[float]) -> tuple[float, float, bool]:
    """Return the smallest and largest score that an item can have, and whether these are only what was seen."""
    low, high = min(scores), max(scores)
    if asked.score_range:
        least, most = asked.score_range
        if low < least or high > most:
            raise RecipeError(
                f"registry.gate.{asked.key.removesuffix('metric')}score_range: {asked.metric} has scores from "
                f"{low:.6g} to {high:.6g}, and the range is {[least, most]}. Widen it."
            )
        return least, most, False
    known = asked.metric in UNIT_INTERVAL_METRICS or asked.metric.removesuffix("_clean").endswith("_accuracy")
    if known and low >= 0 and high <= 1:
        return 0.0, 1.0, False
    return (low, high, True) if low < high else (low - 1, high, True)


def _of_targets(questions: list[_Question], against: str, config: GateConfig) -> list[Finding]:
    """Judge targets from the clearest to the least clear; after one that fails, Holm's method lets none pass."""
    p_values = [question.test.p(question.asked.needed) for question in questions]
    if config.correction == "none":
        return [_finding(question, against, config.level) for question in questions]
    levels = statistics.holm_levels(p_values, config.level)
    findings: dict[int, Finding] = {}
    for place in sorted(range(len(questions)), key=lambda i: p_values[i]):
        found = _finding(questions[place], against, levels[place])
        all_before = all(finding.passed for finding in findings.values())
        findings[place] = found.model_copy(update={"passed": found.passed and all_before})
    return [findings[place] for place in range(len(questions))]


def _finding(question: _Question, against: str, level: float) -> Finding:
    asked = question.asked
    candidate, opponent = (np.array(side) for side in zip(*question.pairs, strict=True))
    gain, spread = float((candidate - opponent).mean()), float((candidate - opponent).std(ddof=1))
    p = question.test.p(asked.needed)
    detectable, items_needed = _plan(question, level, spread, gain if asked.role == "target" else 0.0)
    return Finding(
        against=against,
        metric=asked.metric,
        role=asked.role,
        test=question.test.name,
        opponent=float(opponent.mean()),
        candidate=float(candidate.mean()),
        gain=gain,
        low=question.test.low(level),
        needed=asked.needed,
        p=p,
        level=level,
        num_items=len(question.pairs),
        num_excluded=question.num_excluded,
        detectable=detectable,
        items_needed=items_needed,
        passed=p < 1 - level,
        all_items=question.all_items,
        num_trained=question.num_trained,
        method=question.method,
    )


def _plan(question: _Question, level: float, spread: float, true_gain: float) -> tuple[float, int | None]:
    """Return the smallest gain that passes in 8 of 10 tries, and with how many items `true_gain` does so."""
    test, needed = question.test, question.asked.needed
    if isinstance(test, BoundedMeanTest):
        size = test.items_needed(true_gain, needed, level, POWER)
        return test.detectable(needed, level, POWER), size and max(MIN_HELD_OUT, size)
    width = (NormalDist().inv_cdf(level) + NormalDist().inv_cdf(POWER)) * spread
    return needed + width / sqrt(len(question.pairs)), _items_needed(true_gain - needed, width)


def _items_needed(distance: float, width: float) -> int | None:
    """Return how many items see a true difference that lies `distance` beyond what is needed, in 8 of 10 tries.

    Args:
        distance: Of the true difference from what is needed.
        width: Spread of the differences, times the two quantiles of level and power.
    """
    if distance <= 0 or width == 0:
        return None
    return max(MIN_HELD_OUT, ceil((width / distance) ** 2))
