"""Level and power of the gate, and its findings."""

from contextlib import contextmanager

import numpy as np
import pytest

from tuneline.bounded_mean import BoundedMeanTest
from tuneline.config.sections.gate import GateConfig
from tuneline.errors import RecipeError, TrackingError
from tuneline.statistics import PairedBootstrapTest
from tuneline.tracking import gate

CONFIG = GateConfig(num_resamples=1000)
CORRELATION = 0.8


def draw(generator, num_items, gain=0.0):
    """Draw scores of two models on the same items, with equal spread and a difference of `gain` in the mean."""
    shared, first, second = generator.standard_normal((3, num_items))
    weight, rest = CORRELATION**0.5, (1 - CORRELATION) ** 0.5
    scores = [np.clip(0.4 + 0.2 * (weight * shared + rest * own), 0, 1) for own in (first, second)]
    return by_item(np.clip(scores[0] + gain, 0, 1)), by_item(scores[1])


def by_item(scores):
    return {f"item-{i}": float(value) for i, value in enumerate(scores)}


def compare(candidate, opponent, **options):
    config = CONFIG.model_copy(update=options)
    (finding,) = gate.evaluate({"rougeL": candidate}, {"rougeL": opponent}, "the base model", config)
    return finding


@contextmanager
def p_values_only():
    """Skip the expensive parts of findings other than the p-value, as thousands are drawn."""
    cache, real = {}, BoundedMeanTest.p

    def p(self, bound):
        key = (tuple(sorted(self.differences)), bound)
        if key not in cache:
            cache[key] = real(self, bound)
        return cache[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundedMeanTest, "p", p)
        for name in ("low", "detectable", "items_needed"):
            patch.setattr(BoundedMeanTest, name, lambda *_: 0)
        yield


def share_passed(num_trials, num_items, gain=0.0):
    generator = np.random.default_rng(0)
    with p_values_only():
        return np.mean([compare(*draw(generator, num_items, gain)).passed for _ in range(num_trials)])


@pytest.mark.parametrize("num_items", [5, 10, 100])
def test_an_equal_model_passes_at_most_one_time_in_twenty(num_items):
    """At most 5 % plus two Monte-Carlo errors of 1,000 trials; `new >= old` would pass half of the time."""
    assert share_passed(num_trials=1000, num_items=num_items) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_a_true_gain_of_five_points_is_detected():
    assert share_passed(num_trials=200, num_items=300, gain=0.05) >= 0.9


def test_the_detectable_gain_is_detected_with_the_stated_power():
    gains = [compare(*draw(np.random.default_rng(seed), num_items=100)).detectable for seed in range(20)]

    share = share_passed(num_trials=300, num_items=100, gain=np.mean(gains))

    assert share == pytest.approx(gate.POWER, abs=0.07)  # three standard errors of 300 trials


def test_more_items_detect_smaller_gains():
    few, many = (compare(*draw(np.random.default_rng(0), num_items)) for num_items in (100, 900))

    assert few.detectable / 9 < many.detectable < few.detectable / 3, (
        "between a third, as the standard error, and a ninth, as the bound of the worst case"
    )


def test_the_required_gain_raises_the_bound():
    candidate, opponent = draw(np.random.default_rng(0), num_items=300, gain=0.05)

    default, strict = compare(candidate, opponent), compare(candidate, opponent, min_gain=0.05)

    assert default.passed
    assert not strict.passed
    assert compare(candidate, opponent, min_gain=default.low - 1e-9).passed
    assert not compare(candidate, opponent, min_gain=default.low + 1e-9).passed
    assert strict.detectable == pytest.approx(default.detectable + 0.05, abs=0.001)


def test_equal_scores_do_not_pass():
    scores = by_item([0.1, 0.3, 0.5, 0.7, 0.9])

    assert not compare(scores, scores).passed


def test_equal_binary_scores_have_no_detectable_gain():
    same = by_item([1.0, 0.0] * 5)

    sentence = compare(same, same).sentence()

    assert "detect" not in sentence
    assert "not above the required +0.0 (10 items; exact McNemar test)" in sentence


def test_the_finding_has_the_bound_and_p_value_of_its_test():
    candidate, opponent = draw(np.random.default_rng(3), num_items=40, gain=0.02)
    differences = [candidate[item] - opponent[item] for item in sorted(candidate)]
    bounded = BoundedMeanTest(differences, -1.0)
    bootstrap = PairedBootstrapTest(differences, num_resamples=1000)

    finding, old = compare(candidate, opponent), compare(candidate, opponent, test="bootstrap")

    assert (finding.gain, finding.num_items) == (pytest.approx(np.mean(differences)), 40)
    assert (finding.low, finding.p) == (bounded.low(0.95), bounded.p(0))
    assert (old.low, old.p) == (bootstrap.low(0.95), bootstrap.p(0))
    assert finding.candidate - finding.opponent == pytest.approx(finding.gain)


def test_the_order_of_items_does_not_matter():
    candidate, opponent = draw(np.random.default_rng(0), num_items=50)

    assert compare(candidate, opponent) == compare(dict(reversed(candidate.items())), opponent)


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
        compare(candidate, opponent)


@pytest.mark.parametrize(
    ("min_gain", "beginning"),
    [
        (0.0, "rougeL 60.0 against 50.0 of the base model: +10.0, at 95% at least +4.6, above the required +0.0"),
        (0.25, "rougeL 60.0 against 50.0 of the base model: +10.0, at 95% at least +4.6, not above the required +25.0"),
    ],
)
def test_a_finding_of_a_target_is_a_sentence(min_gain, beginning):
    finding = compare(by_item([0.6] * 60), by_item([0.5] * 60), min_gain=min_gain)

    assert finding.sentence().startswith(beginning)
    assert finding.sentence().endswith(
        f"(60 items; minimum detectable gain {finding.show(finding.detectable)}; test of a bounded mean, scores 0 to 1)"
    )
    needed = {0.0: 5.1, 0.25: 31.4}[min_gain]
    assert 100 * finding.detectable == pytest.approx(needed, abs=0.1), "equal gains pass from here on"


# Several metrics, right and wrong answers, contaminated items


def gate_config(**options):
    return GateConfig.model_validate({"num_resamples": 1000, **options})


def answers(num_items, won, lost):
    """Return binary scores of two models that differ only on the first items."""
    candidate = [1.0] * won + [0.0] * lost + [i % 2.0 for i in range(num_items - won - lost)]
    opponent = [0.0] * won + [1.0] * lost + [i % 2.0 for i in range(num_items - won - lost)]
    return by_item(candidate), by_item(opponent)


def compare_all(config, contaminated=(), **columns):
    candidate, opponent = ({name: pair[i] for name, pair in columns.items()} for i in (0, 1))
    return gate.evaluate(candidate, opponent, "the base model", config, contaminated)


def share_promoted(config, num_trials, **draws):
    """Draw pairs of models repeatedly; return the share of candidates that pass the gate."""
    generator = np.random.default_rng(0)
    passed = 0
    with p_values_only():
        for _ in range(num_trials):
            findings = compare_all(config, **{name: make(generator) for name, make in draws.items()})
            passed += not gate.failed_findings(findings, config)
    return passed / num_trials


AT_MOST = 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)


def exam(num_items, win, loss):
    """Return a function that draws an exam with the given shares of won and lost questions."""

    def make(generator):
        won, lost, _ = generator.multinomial(num_items, [win, loss, 1 - win - loss])
        return answers(num_items, int(won), int(lost))

    return make


@pytest.mark.parametrize("num_items", [20, 100])
def test_an_equal_model_passes_an_exam_at_most_one_time_in_twenty(num_items):
    config = gate_config(targets=[{"metric": "mmlu_accuracy"}])

    assert share_promoted(config, 2000, mmlu_accuracy=exam(num_items, 0.1, 0.1)) <= AT_MOST


def test_a_better_model_passes_an_exam():
    config = gate_config(targets=[{"metric": "mmlu_accuracy"}])

    assert share_promoted(config, 500, mmlu_accuracy=exam(300, 0.12, 0.04)) >= 0.9


@pytest.mark.parametrize(("num_items", "win", "loss"), [(100, 0, 0.05), (300, 0, 0.05), (300, 0.05, 0.1)])
def test_a_model_at_the_margin_passes_a_guard_at_most_one_time_in_twenty(num_items, win, loss):
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.05}])
    won = (by_item([0.6] * 60), by_item([0.5] * 60))
    draws = {"rougeL": lambda _: won, "mmlu_accuracy": exam(num_items, win, loss)}

    assert share_promoted(config, 2000, **draws) <= AT_MOST


def test_an_equal_model_passes_a_guard_with_the_stated_power():
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.05}])
    won = (by_item([0.6] * 60), by_item([0.5] * 60))
    needed = compare_all(config, rougeL=won, mmlu_accuracy=answers(1000, 50, 50))[1].items_needed

    share = share_promoted(config, 500, rougeL=lambda _: won, mmlu_accuracy=exam(needed, 0.05, 0.05))

    assert share == pytest.approx(gate.POWER, abs=0.06)


@pytest.mark.parametrize("needed", ["all", "any"])
def test_several_targets_keep_the_familywise_error_rate(needed):
    config = gate_config(targets=[{"metric": name} for name in ("a", "b", "c")], targets_needed=needed)
    draws = {name: lambda generator: draw(generator, 30) for name in ("a", "b", "c")}

    assert share_promoted(config, 500, **draws) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 500)


def test_without_holm_the_familywise_error_rate_exceeds_the_level():
    config = gate_config(targets=[{"metric": name} for name in ("a", "b", "c")], test="bootstrap")
    loose = config.model_copy(update={"targets_needed": "any", "correction": "none"})  # a recipe cannot set this
    draws = {name: lambda generator: draw(generator, 30) for name in ("a", "b", "c")}

    assert share_promoted(loose, 300, **draws) > 0.1


def test_holm_tests_the_smallest_p_value_at_the_strictest_level_and_stops_at_a_failure():
    config = gate_config(targets=[{"metric": name} for name in ("clear", "none", "weak")])
    generator = np.random.default_rng(0)
    none = draw(generator, 200)
    findings = compare_all(
        config, clear=draw(generator, 200, gain=0.1), none=(none[1], none[1]), weak=(none[1], none[1])
    )

    assert [round(finding.level, 4) for finding in findings] == [0.9833, 0.975, 0.95]
    assert [finding.passed for finding in findings] == [True, False, False]
    assert [finding.metric for finding in gate.failed_findings(findings, config)] == ["none", "weak"]
    any_is_enough = config.model_copy(update={"targets_needed": "any"})
    assert gate.failed_findings(findings, any_is_enough) == []


@pytest.mark.parametrize(
    ("options", "columns", "names"),
    [
        ({"targets": [{"metric": "x_accuracy"}]}, answers(40, 9, 1), ["mcnemar"]),
        ({"targets": [{"metric": "x_accuracy", "min_effect": 0.01}]}, answers(40, 9, 1), ["bounded_mean"]),
        ({"targets": [{"metric": "x_accuracy"}], "test": "bootstrap"}, answers(40, 9, 1), ["bootstrap"]),
        ({"targets": [{"metric": "x_accuracy"}], "test": "mcnemar"}, answers(40, 9, 1), ["mcnemar"]),
        ({"targets": [{"metric": "x_accuracy"}]}, (by_item([0.6] * 60), by_item([0.5] * 60)), ["bounded_mean"]),
    ],
)
def test_the_test_depends_on_the_scores(options, columns, names):
    assert [finding.test for finding in compare_all(gate_config(**options), x_accuracy=columns)] == names


def test_mcnemar_on_other_scores_is_refused():
    config = gate_config(targets=[{"metric": "rougeL"}], test="mcnemar")

    with pytest.raises(RecipeError, match=r"registry.gate.test: mcnemar compares right and wrong .* Set test: auto"):
        compare_all(config, rougeL=(by_item([0.6] * 60), by_item([0.5] * 60)))


def test_a_missing_metric_is_reported_with_its_recipe_key():
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.02}])

    with pytest.raises(RecipeError) as caught:
        compare_all(config, rougeL=(by_item([0.6] * 60), by_item([0.5] * 60)))

    assert str(caught.value) == (
        "registry.gate.guards.0.metric: the report of the new model has no mmlu_accuracy; it has rougeL. "
        "Set one of those."
    )


def test_contaminated_items_are_excluded_and_both_results_are_shown():
    base_scores, opponent = by_item([0.5] * 20), by_item([0.5] * 20)
    contaminated = {"item-0", "item-1", "another exam's"}
    candidate = base_scores | {item: 1.0 for item in contaminated if item in base_scores}
    (clean,) = compare_all(gate_config(), contaminated, rougeL=(candidate, opponent))
    (unfiltered,) = compare_all(gate_config(exclude_contaminated=False), contaminated, rougeL=(candidate, opponent))

    assert (clean.gain, clean.num_items, clean.num_excluded) == (0.0, 18, 2)
    assert clean.all_items.gain == pytest.approx(0.05)
    expected = (
        "(18 items; minimum detectable gain 18.1; test of a bounded mean, scores 0 to 1; 2 contaminated "
        "items left out; with them "
        "+5.0)"
    )
    assert expected in clean.sentence()
    assert (unfiltered.gain, unfiltered.num_items) == (pytest.approx(0.05), 20)
    assert unfiltered.all_items is None


def test_too_few_clean_items_are_an_error():
    scores = by_item([0.5] * 6)

    with pytest.raises(
        TrackingError, match=r"Of the 6 items of rougeL, 2 were found in the training rows; at least 5 clean"
    ):
        compare_all(gate_config(), {"item-0", "item-1"}, rougeL=(scores, scores))


def test_a_finding_of_a_guard_is_a_sentence():
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.05}])
    won = (by_item([0.6] * 60), by_item([0.5] * 60))
    passed, failed = (
        compare_all(config, rougeL=won, mmlu_accuracy=answers(*counts))[1] for counts in ((400, 10, 10), (400, 0, 20))
    )

    assert "within the tolerated loss of 5.0 (400 items; an equal model needs " in passed.sentence()
    assert "not within the tolerated loss of 5.0" in failed.sentence()


def test_few_items_without_a_difference_do_not_pass_a_guard():
    """A bootstrap of equal answers has no width; 20 questions cannot exclude a loss."""
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.05}])
    won = (by_item([0.6] * 60), by_item([0.5] * 60))
    few, many = (compare_all(config, rougeL=won, mmlu_accuracy=answers(size, 0, 0))[1] for size in (20, 1000))

    assert (few.passed, many.passed) == (False, True)
    assert 20 < few.items_needed < 100
    exact = compare_all(config, rougeL=won, mmlu_accuracy=answers(few.items_needed, 0, 0))[1]
    below = compare_all(config, rougeL=won, mmlu_accuracy=answers(few.items_needed - 1, 0, 0))[1]
    assert (exact.passed, below.passed) == (True, False)


def test_log_likelihoods_are_shown_in_nats():
    config = gate_config(targets=[{"metric": "log_likelihood"}])
    (finding,) = compare_all(config, log_likelihood=(by_item([-2.0] * 60), by_item([-2.5] * 60)))

    assert finding.sentence().startswith("log_likelihood -2.000 against -2.500 of the base model: +0.500")
