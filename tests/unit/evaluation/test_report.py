"""The evaluation report: metrics from per-item scores, Markdown and HTML."""

from dataclasses import replace

import pytest

from tuneline.evaluation import report as reports
from tuneline.evaluation.html_report import to_html
from tuneline.evaluation.report import Report
from tuneline.evaluation.score_store import Score
from tuneline.metric_tables import by_metric
from tuneline.statistics import Interval, bootstrap_mean


def make_score(i, benchmark="held_out", output="an answer", **metrics):
    return Score(benchmark, f"{benchmark}-{i}", f"prompt {i}", f"reference {i}", output, metrics)


def make_report(base=(0.1, 0.5, 0.9), gain=0.05, accuracy=(0.0, 1.0)):
    """Return a report on three held-out items with equal gains and an exam of two questions."""
    exam = [make_score(i, benchmark="mmlu", accuracy=value) for i, value in enumerate(accuracy)]
    before = [make_score(i, rougeL=value) for i, value in enumerate(base)]
    after = [make_score(i, rougeL=value + gain) for i, value in enumerate(base)]
    return Report(base=[*before, *exam], model=[*after, *exam], base_hash="a", model_hash="b")


def test_metrics_of_an_exam_have_its_name_as_prefix():
    scores = [make_score(1, rouge1=0.5, rougeL=0.25), make_score(2, benchmark="mmlu", accuracy=1.0)]

    assert by_metric(scores) == {
        "rouge1": {"held_out-1": 0.5},
        "rougeL": {"held_out-1": 0.25},
        "mmlu_accuracy": {"mmlu-2": 1.0},
    }


def test_the_gain_is_paired_by_item():
    """All items gain the same, so the paired interval has no width, although the scores vary."""
    parts = make_report(gain=0.05).metrics()["rougeL"]

    assert [parts["gain"].low, parts["gain"].mean, parts["gain"].high] == pytest.approx([0.05] * 3)
    assert parts["base"].high - parts["base"].low > 0.3


def test_intervals_are_bootstrap_intervals():
    parts = make_report(base=(0.1, 0.5, 0.9), gain=0.05).metrics()["rougeL"]

    assert parts["base"] == bootstrap_mean([0.1, 0.5, 0.9])
    assert parts["model"] == bootstrap_mean([0.1 + 0.05, 0.5 + 0.05, 0.9 + 0.05])


def test_items_are_matched_by_id():
    before, after = {"x": 0.25, "y": 1.0}, {"y": 1.0, "x": 0.5}

    assert reports.compare(before, after)["gain"].mean == pytest.approx(0.125)


def test_log_likelihoods_are_not_percentages_and_texts_have_no_answers():
    before = [make_score(i, output="", log_likelihood=value) for i, value in enumerate((-3.25, -2.75))]
    before = [replace(score, reference="") for score in before]
    after = [replace(score, metrics={"log_likelihood": score.metrics["log_likelihood"] + 0.016}) for score in before]
    report = Report(base=before, model=after, base_hash="a", model_hash="b")

    row = report.to_markdown().splitlines()[2]

    assert row.startswith("| log_likelihood | 2 | -3.000 [")
    assert row.endswith("| +0.016 [+0.016, +0.016] |")
    assert "First answers" not in to_html(report)
    assert "+0.016 [+0.016, +0.016]" in to_html(report)


def test_markdown_has_a_row_for_each_metric():
    lines = make_report(base=(0.5, 0.5), gain=0.25).to_markdown().splitlines()

    assert lines[0] == "| metric | items | base | model | gain |"
    assert lines[2] == "| rougeL | 2 | 50.0 [50.0, 50.0] | 75.0 [75.0, 75.0] | +25.0 [+25.0, +25.0] |"
    assert lines[3].startswith("| mmlu_accuracy | 2 | 50.0 [0.0, 100.0] | ")
    assert len(lines) == 4


def test_html_escapes_text():
    malicious = "<script>alert('x')</script> & co"
    base, model = (make_score(1, output=text, rougeL=0.5) for text in ("quiet", malicious))

    page = to_html(Report(base=[base], model=[model], base_hash="a", model_hash="b"))

    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; co" in page
    assert "<td>rougeL</td><td>1</td><td>50.0 [50.0, 50.0]</td>" in page


def test_html_shows_the_first_answers_only():
    many = [make_score(i, rougeL=0.5) for i in range(25)]

    page = to_html(Report(base=many, model=many, base_hash="a", model_hash="b"))

    assert "prompt 19<" in page
    assert "prompt 20<" not in page


def test_intervals_are_percentages_with_an_optional_sign():
    interval = Interval(mean=0.123, low=-0.01, high=0.25, num_items=9)

    assert reports.format_interval("rougeL", interval) == "12.3 [-1.0, 25.0]"
    assert reports.format_interval("rougeL", interval, signed=True) == "+12.3 [-1.0, +25.0]"


def make_exam(*accuracies):
    """Return scores of four questions in two subjects, with categories."""
    groups = ("STEM/physics", "STEM/physics", "STEM/physics", "Social Sciences/law")
    scores = [make_score(i, benchmark="mmlu", accuracy=value) for i, value in enumerate(accuracies)]
    return [replace(score, group=group) for score, group in zip(scores, groups, strict=True)]


def test_an_exam_has_categories_a_micro_and_a_macro_average():
    report = Report(base=make_exam(0, 0, 0, 1), model=make_exam(1, 1, 1, 0), base_hash="a", model_hash="b")

    means = {name: parts["model"].mean for name, parts in report.metrics().items()}

    assert means == {
        "mmlu_accuracy": 0.75,
        "mmlu_stem_accuracy": 1.0,
        "mmlu_social_sciences_accuracy": 0.0,
        "mmlu_macro_accuracy": 0.5,
    }
    assert report.metrics()["mmlu_macro_accuracy"]["gain"].mean == pytest.approx(0.0)
    assert report.subjects() == {"mmlu/physics": (3, 0.0, 1.0), "mmlu/law": (1, 1.0, 0.0)}


def test_clean_items_have_a_separate_metric():
    scores = [make_score(1, rougeL=1.0), make_score(2, rougeL=0.25)]
    scores[0] = replace(scores[0], contamination="exact")

    table = by_metric(scores)

    assert list(table["rougeL"]) == ["held_out-1", "held_out-2"]
    assert table["rougeL_clean"] == {"held_out-2": 0.25}


def test_methods_totals_and_noise_are_listed_below_the_table():
    fields = {"totals": {"base": {"perplexity": 20.0}, "model": {"perplexity": 10.0}}, "methods": {"bleu": "tok:13a"}}
    report = replace(make_report(), **fields, noise={"model": {"rougeL": [0.25, 0.75]}})

    text = report.to_markdown()

    assert "- perplexity: base 20, model 10" in text
    assert "- bleu: tok:13a" in text
    assert "- rougeL of model: 50.0 ± 35.4 [25.0, 75.0], 2 seeds" in text
    assert "tok:13a" in to_html(report)
