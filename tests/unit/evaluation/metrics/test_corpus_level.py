"""Corpus-level metrics, also with empty generations."""

import pytest

from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.evaluation.metrics import corpus_level
from tuneline.evaluation.report import Report
from tuneline.evaluation.score_store import Score


def scores(*outputs):
    return [
        Score("held_out", str(i), "What?", "It is four.", output, {"rougeL": float(bool(output))})
        for i, output in enumerate(outputs)
    ]


@pytest.mark.parametrize(("outputs", "count"), [(["", "It is four.", ""], 2.0), (["", ""], 2.0), (["It is."], 0.0)])
def test_empty_generations_are_counted(outputs, count):
    config = EvaluateStepConfig(metrics=["rougeL"])

    assert corpus_level.corpus_scores(scores(*outputs), config)["empty_answers"] == count


def test_a_corpus_of_empty_generations_scores_zero_and_is_reported():
    config = EvaluateStepConfig(metrics=["rougeL", "bleu", "chrf"])
    empty_scores = [
        Score("held_out", str(i), "What?", "It is four.", "", {"rougeL": 0.0, "bleu": 0.0, "chrf": 0.0})
        for i in range(3)
    ]

    figures = corpus_level.corpus_scores(empty_scores, config)
    report = Report(empty_scores, empty_scores, "a", "b", totals={"base": figures, "model": figures})

    assert figures == {"corpus_bleu": 0.0, "corpus_chrf": 0.0, "empty_answers": 3.0}
    assert "empty_answers: base 3, model 3" in report.to_markdown()
