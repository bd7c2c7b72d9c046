"""The gate lets luck pass as rarely as it says, and a true gain nearly always."""

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
    """Scores of two models on the same items: alike in the spread, different in the mean by `gain`."""
    shared, mine, theirs = generator.standard_normal((3, num_items))
    weight, rest = CORRELATION**0.5, (1 - CORRELATION) ** 0.5
    scores = [np.clip(0.4 + 0.2 * (weight * shared + rest * own), 0, 1) for own in (mine, theirs)]
    return by_item(np.clip(scores[0] + gain, 0, 1)), by_item(scores[1])


def by_item(scores):
    return {f"item-{i}": float(value) for i, value in enumerate(scores)}


def judge(candidate, opponent, **options):
    config = CONFIG.model_copy(update=options)
    (finding,) = gate.evaluate({"rougeL": candidate}, {"rougeL": opponent}, "the base model", config)
    return finding


@contextmanager
def verdicts_only():
    """Leave out what a finding says beside its verdict, as thousands are drawn."""
    known, real = {}, BoundedMeanTest.p

    def p(self, bound):
        key = (tuple(sorted(self.differences)), bound)
        if key not in known:
            known[key] = real(self, bound)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundedMeanTest, "p", p)
        for name in ("low", "detectable", "items_needed"):
            patch.setattr(BoundedMeanTest, name, lambda *_: 0)
        yield


def share_passed(num_trials, num_items, gain=0.0):
    generator = np.random.default_rng(0)
    with verdicts_only():
        return np.mean([judge(*draw(generator, num_items, gain)).passed for _ in range(num_trials)])


@pytest.mark.parametrize("num_items", [5, 10, 100])
def test_an_equal_model_passes_at_most_one_time_in_twenty(num_items):
    """At most 5 % and two Monte-Carlo errors of 1,000 trials; `new >= old` would pass half of the time."""
    assert share_passed(num_trials=1000, num_items=num_items) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


def test_a_true_gain_of_five_points_is_found():
    assert share_passed(num_trials=200, num_items=300, gain=0.05) >= 0.9


def test_the_detectable_gain_is_found_in_eight_of_ten_tries():
    found = [judge(*draw(np.random.default_rng(seed), num_items=100)).detectable for seed in range(20)]

    share = share_passed(num_trials=300, num_items=100, gain=np.mean(found))

    assert share == pytest.approx(gate.POWER, abs=0.07)  # three standard errors of 300 trials


def test_more_items_detect_smaller_gains():
    few, many = (judge(*draw(np.random.default_rng(0), num_items)) for num_items in (100, 900))

    assert few.detectable / 9 < many.detectable < few.detectable / 3, (
        "three times less, as the spread; or nine, as luck"
    )


def test_the_wanted_gain_is_on_top():
    candidate, opponent = draw(np.random.default_rng(0), num_items=300, gain=0.05)

    free, asked = judge(candidate, opponent), judge(candidate, opponent, min_gain=0.05)

    assert free.passed
    assert not asked.passed
    assert judge(candidate, opponent, min_gain=free.low - 1e-9).passed
    assert not judge(candidate, opponent, min_gain=free.low + 1e-9).passed
    assert asked.detectable == pytest.approx(free.detectable + 0.05, abs=0.001)


def test_the_same_answers_do_not_pass():
    scores = by_item([0.1, 0.3, 0.5, 0.7, 0.9])

    assert not judge(scores, scores).passed


def test_right_and_wrong_answers_without_a_difference_claim_no_gain_that_they_detect():
    same = by_item([1.0, 0.0] * 5)

    sentence = judge(same, same).sentence()

    assert "detect" not in sentence
    assert "not above the required +0.0 (10 items; exact McNemar test)" in sentence


def test_the_finding_holds_the_ends_of_its_test():
    candidate, opponent = draw(np.random.default_rng(3), num_items=40, gain=0.02)
    differences = [candidate[item] - opponent[item] for item in sorted(candidate)]
    bounded = BoundedMeanTest(differences, -1.0)
    bootstrap = PairedBootstrapTest(differences, num_resamples=1000)

    finding, old = judge(candidate, opponent), judge(candidate, opponent, test="bootstrap")

    assert (finding.gain, finding.num_items) == (pytest.approx(np.mean(differences)), 40)
    assert (finding.low, finding.p) == (bounded.low(0.95), bounded.p(0))
    assert (old.low, old.p) == (bootstrap.low(0.95), bootstrap.p(0))
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
        (0.0, "rougeL 60.0 against 50.0 of the base model: +10.0, at 95% at least +4.6, above the required +0.0"),
        (0.25, "rougeL 60.0 against 50.0 of the base model: +10.0, at 95% at least +4.6, not above the required +25.0"),
    ],
)
def test_a_finding_can_be_read(min_gain, words):
    finding = judge(by_item([0.6] * 60), by_item([0.5] * 60), min_gain=min_gain)

    assert finding.sentence().startswith(words)
    assert finding.sentence().endswith(
        f"(60 items; minimum detectable gain {finding.show(finding.detectable)}; test of a bounded mean, scores 0 to 1)"
    )
    needed = {0.0: 5.1, 0.25: 31.4}[min_gain]
    assert 100 * finding.detectable == pytest.approx(needed, abs=0.1), "equal gains pass from here on"


# Several metrics, right and wrong answers, contaminated items


def gate_config(**options):
    return GateConfig.model_validate({"num_resamples": 1000, **options})


def answers(num_items, won, lost):
    """Right and wrong answers of two models that differ on the first items only."""
    mine = [1.0] * won + [0.0] * lost + [i % 2.0 for i in range(num_items - won - lost)]
    theirs = [0.0] * won + [1.0] * lost + [i % 2.0 for i in range(num_items - won - lost)]
    return by_item(mine), by_item(theirs)


def judge_all(config, dirty=(), **columns):
    candidate, opponent = ({name: pair[i] for name, pair in columns.items()} for i in (0, 1))
    return gate.evaluate(candidate, opponent, "the base model", config, dirty)


def share_let_through(config, num_trials, **draws):
    """Let pairs of models be drawn over and over, and return how often the gate lets the new one pass."""
    generator = np.random.default_rng(0)
    passed = 0
    with verdicts_only():
        for _ in range(num_trials):
            findings = judge_all(config, **{name: make(generator) for name, make in draws.items()})
            passed += not gate.failed_findings(findings, config)
    return passed / num_trials


AT_MOST = 0.05 + 2 * np.sqrt(0.05 * 0.95 / 2000)


def exam(num_items, win, loss):
    """Draw an exam that the new model wins on a share of the questions and loses on another."""

    def make(generator):
        won, lost, _ = generator.multinomial(num_items, [win, loss, 1 - win - loss])
        return answers(num_items, int(won), int(lost))

    return make


@pytest.mark.parametrize("num_items", [20, 100])
def test_an_equally_good_examinee_passes_at_most_one_time_in_twenty(num_items):
    config = gate_config(targets=[{"metric": "mmlu_accuracy"}])

    assert share_let_through(config, 2000, mmlu_accuracy=exam(num_items, 0.1, 0.1)) <= AT_MOST


def test_a_better_examinee_is_found():
    config = gate_config(targets=[{"metric": "mmlu_accuracy"}])

    assert share_let_through(config, 500, mmlu_accuracy=exam(300, 0.12, 0.04)) >= 0.9


@pytest.mark.parametrize(("num_items", "win", "loss"), [(100, 0, 0.05), (300, 0, 0.05), (300, 0.05, 0.1)])
def test_a_guard_lets_a_model_that_lost_its_margin_pass_at_most_one_time_in_twenty(num_items, win, loss):
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.05}])
    won = (by_item([0.6] * 60), by_item([0.5] * 60))
    draws = {"rougeL": lambda _: won, "mmlu_accuracy": exam(num_items, win, loss)}

    assert share_let_through(config, 2000, **draws) <= AT_MOST


def test_an_equal_model_passes_a_guard_in_eight_of_ten_tries_with_the_items_it_asks_for():
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.05}])
    won = (by_item([0.6] * 60), by_item([0.5] * 60))
    needed = judge_all(config, rougeL=won, mmlu_accuracy=answers(1000, 50, 50))[1].items_needed

    share = share_let_through(config, 500, rougeL=lambda _: won, mmlu_accuracy=exam(needed, 0.05, 0.05))

    assert share == pytest.approx(gate.POWER, abs=0.06)


@pytest.mark.parametrize("needed", ["all", "any"])
def test_several_targets_do_not_give_luck_more_tries(needed):
    config = gate_config(targets=[{"metric": name} for name in ("a", "b", "c")], targets_needed=needed)
    draws = {name: lambda generator: draw(generator, 30) for name in ("a", "b", "c")}

    assert share_let_through(config, 500, **draws) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 500)


def test_without_holm_one_of_three_would_pass_by_luck_far_too_often():
    config = gate_config(targets=[{"metric": name} for name in ("a", "b", "c")], test="bootstrap")
    loose = config.model_copy(update={"targets_needed": "any", "correction": "none"})  # a recipe may not ask for it
    draws = {name: lambda generator: draw(generator, 30) for name in ("a", "b", "c")}

    assert share_let_through(loose, 300, **draws) > 0.1


def test_holm_asks_the_clearest_target_most_and_stops_at_the_first_that_fails():
    config = gate_config(targets=[{"metric": name} for name in ("clear", "none", "weak")])
    generator = np.random.default_rng(0)
    none = draw(generator, 200)
    found = judge_all(config, clear=draw(generator, 200, gain=0.1), none=(none[1], none[1]), weak=(none[1], none[1]))

    assert [round(finding.level, 4) for finding in found] == [0.9833, 0.975, 0.95]
    assert [finding.passed for finding in found] == [True, False, False]
    assert [finding.metric for finding in gate.failed_findings(found, config)] == ["none", "weak"]
    any_is_enough = config.model_copy(update={"targets_needed": "any"})
    assert gate.failed_findings(found, any_is_enough) == []


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
def test_the_test_follows_the_scores(options, columns, names):
    assert [finding.test for finding in judge_all(gate_config(**options), x_accuracy=columns)] == names


def test_mcnemar_on_other_scores_is_refused():
    config = gate_config(targets=[{"metric": "rougeL"}], test="mcnemar")

    with pytest.raises(RecipeError, match=r"registry.gate.test: mcnemar compares right and wrong .* Set test: auto"):
        judge_all(config, rougeL=(by_item([0.6] * 60), by_item([0.5] * 60)))


def test_a_metric_that_a_report_lacks_is_told_with_its_key():
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.02}])

    with pytest.raises(RecipeError) as caught:
        judge_all(config, rougeL=(by_item([0.6] * 60), by_item([0.5] * 60)))

    assert str(caught.value) == (
        "registry.gate.guards.0.metric: the report of the new model has no mmlu_accuracy; it has rougeL. "
        "Set one of those."
    )


def test_contaminated_items_decide_nothing_and_both_numbers_are_shown():
    mine, theirs = by_item([0.5] * 20), by_item([0.5] * 20)
    dirty = {"item-0", "item-1", "another exam's"}
    learned = mine | {item: 1.0 for item in dirty if item in mine}
    (clean,) = judge_all(gate_config(), dirty, rougeL=(learned, theirs))
    (all_of_them,) = judge_all(gate_config(exclude_contaminated=False), dirty, rougeL=(learned, theirs))

    assert (clean.gain, clean.num_items, clean.num_excluded) == (0.0, 18, 2)
    assert clean.all_items.gain == pytest.approx(0.05)
    told = (
        "(18 items; minimum detectable gain 18.1; test of a bounded mean, scores 0 to 1; 2 contaminated "
        "items left out; with them "
        "+5.0)"
    )
    assert told in clean.sentence()
    assert (all_of_them.gain, all_of_them.num_items) == (pytest.approx(0.05), 20)
    assert all_of_them.all_items is None


def test_too_few_clean_items_are_told():
    scores = by_item([0.5] * 6)

    with pytest.raises(
        TrackingError, match=r"Of the 6 items of rougeL, 2 were found in the training rows; at least 5 clean"
    ):
        judge_all(gate_config(), {"item-0", "item-1"}, rougeL=(scores, scores))


def test_a_guard_can_be_read():
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.05}])
    won = (by_item([0.6] * 60), by_item([0.5] * 60))
    kept, fell = (
        judge_all(config, rougeL=won, mmlu_accuracy=answers(*counts))[1] for counts in ((400, 10, 10), (400, 0, 20))
    )

    assert "within the tolerated loss of 5.0 (400 items; an equal model needs " in kept.sentence()
    assert "not within the tolerated loss of 5.0" in fell.sentence()


def test_few_items_without_a_difference_prove_nothing():
    """A bootstrap of equal answers has no width; 20 questions exclude little."""
    config = gate_config(targets=[{"metric": "rougeL"}], guards=[{"metric": "mmlu_accuracy", "margin": 0.05}])
    won = (by_item([0.6] * 60), by_item([0.5] * 60))
    few, many = (judge_all(config, rougeL=won, mmlu_accuracy=answers(size, 0, 0))[1] for size in (20, 1000))

    assert (few.passed, many.passed) == (False, True)
    assert 20 < few.items_needed < 100
    exact = judge_all(config, rougeL=won, mmlu_accuracy=answers(few.items_needed, 0, 0))[1]
    below = judge_all(config, rougeL=won, mmlu_accuracy=answers(few.items_needed - 1, 0, 0))[1]
    assert (exact.passed, below.passed) == (True, False)


def test_likelihoods_are_shown_in_nats():
    config = gate_config(targets=[{"metric": "log_likelihood"}])
    (finding,) = judge_all(config, log_likelihood=(by_item([-2.0] * 60), by_item([-2.5] * 60)))

    assert finding.sentence().startswith("log_likelihood -2.000 against -2.500 of the base model: +0.500")
