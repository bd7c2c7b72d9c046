"""The gate lets luck pass as rarely as it says, and a true gain nearly always."""

import numpy as np
import pytest

from tuneline.config.evaluate import GateConfig
from tuneline.errors import TrackingError
from tuneline.statistics import bootstrap_mean
from tuneline.tracking import gate

CONFIG = GateConfig(num_resamples=1000)
CORRELATION = 0.8


def draw(generator, num_items, gain=0.0):
    """Scores of two models on the same items: alike in the spread, different in the mean by `gain`."""
    shared, mine, theirs = generator.standard_normal((3, num_items))
    weight, rest = CORRELATION**0.5, (1 - CORRELATION) ** 0.5
    scores = [np.clip(0.4 + 0.2 * (weight * shared + rest * own), 0, 1) for own in (mine, theirs)]
    return by_item(scores[0] + gain), by_item(scores[1])


def by_item(scores):
    return {f"item-{i}": float(value) for i, value in enumerate(scores)}


def judge(candidate, opponent, **options):
    config = CONFIG.model_copy(update=options)
    (finding,) = gate.judge({"rougeL": candidate}, {"rougeL": opponent}, "the base model", config)
    return finding


def share_passed(num_trials, num_items, gain=0.0):
    generator = np.random.default_rng(0)
    return np.mean([judge(*draw(generator, num_items, gain)).passed for _ in range(num_trials)])


@pytest.mark.parametrize("num_items", [5, 10, 100])
def test_an_equal_model_passes_at_most_one_time_in_twenty(num_items):
    """At most 5 % and two Monte-Carlo errors of 2,000 trials; `new >= old` would pass half of the time."""
    assert share_passed(num_trials=2000, num_items=num_items) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)


def test_a_true_gain_of_five_points_is_found():
    assert share_passed(num_trials=200, num_items=300, gain=0.05) >= 0.9


def test_the_detectable_gain_is_found_in_eight_of_ten_tries():
    detectable = judge(*draw(np.random.default_rng(1), num_items=10_000)).detectable * 10  # of 100 items

    share = share_passed(num_trials=300, num_items=100, gain=detectable)

    assert share == pytest.approx(gate.POWER, abs=0.07)  # three standard errors of 300 trials


def test_more_items_detect_smaller_gains():
    few, many = (judge(*draw(np.random.default_rng(0), num_items)) for num_items in (100, 900))

    assert many.detectable == pytest.approx(few.detectable / 3, rel=0.2)


def test_the_wanted_gain_is_on_top():
    candidate, opponent = draw(np.random.default_rng(0), num_items=300, gain=0.05)

    free, asked = judge(candidate, opponent), judge(candidate, opponent, min_gain=0.05)

    assert free.passed
    assert not asked.passed
    assert judge(candidate, opponent, min_gain=free.low - 1e-9).passed
    assert not judge(candidate, opponent, min_gain=free.low).passed, "the end must lie above, not on it"
    assert asked.detectable == pytest.approx(free.detectable + 0.05)


def test_the_same_answers_do_not_pass():
    scores = by_item([0.1, 0.3, 0.5, 0.7, 0.9])

    assert not judge(scores, scores).passed


def test_the_finding_holds_the_paired_interval():
    candidate, opponent = draw(np.random.default_rng(3), num_items=40, gain=0.02)
    differences = [candidate[item] - opponent[item] for item in sorted(candidate)]
    interval = bootstrap_mean(differences, num_resamples=1000, one_sided=True)

    finding = judge(candidate, opponent)

    assert (finding.gain, finding.low, finding.num_items) == (interval.mean, interval.low, 40)
    assert finding.candidate - finding.opponent == pytest.approx(finding.gain)


def test_the_order_of_items_does_not_matter():
    candidate, opponent = draw(np.random.default_rng(0), num_items=50)

    assert judge(candidate, opponent) == judge(dict(reversed(candidate.items())), opponent)


@pytest.mark.parametrize(
    ("candidate", "opponent", "message"),
    [
        (
            {"a": 1, "b": 1, "c": 1},
            {"a": 1, "b": 1},
            "in rougeL the candidate has 3, the base model has 2, and 2 are common",
        ),
        ({"a": 1, "b": 1}, {"c": 1, "b": 1}, "in rougeL the candidate has 2, the base model has 2, and 1 are common"),
        ({"a": 1}, {"a": 1}, "at least 5"),
        ({}, {}, "at least 5"),
    ],
)
def test_answers_to_different_items_are_refused(candidate, opponent, message):
    with pytest.raises(TrackingError, match=message):
        judge(candidate, opponent)


@pytest.mark.parametrize(
    ("min_gain", "words"),
    [
        (0.0, "rougeL 60.0 against 50.0 of the base model: +10.0, at 95% at least +10.0, above the 0.0 asked for"),
        (0.25, "rougeL 60.0 against 50.0 of the base model: +10.0, at 95% at least +10.0, not above the 25.0 asked"),
    ],
)
def test_a_finding_can_be_read(min_gain, words):
    finding = judge(by_item([0.6] * 9), by_item([0.5] * 9), min_gain=min_gain)

    assert finding.sentence().startswith(words)
    assert finding.sentence().endswith(f"(9 items, which detect {100 * min_gain:.1f})")
