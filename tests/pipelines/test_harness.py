"""Tasks of lm-evaluation-harness through the whole line: reported, asked for by the gate, cached, marked."""

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from tests import harness_tasks, tiny

pytestmark = pytest.mark.zenml

EXAMS = [
    {"engine": "lm_eval", "name": "colours", "task": "tasks/colours.yaml", "metrics": ["acc", "acc_norm"]},
    {
        "engine": "lm_eval",
        "name": "sums",
        "task": "tasks/sums.yaml",
        "metrics": ["exact_match,digits"],
        "limit": 6,
        "num_fewshot": 0,
    },
    {"name": "exam", "path": "exam", "num_shots": 2},
]
GATE = {
    "targets": [{"metric": "colours_acc_norm"}],
    "guards": [{"metric": "sums_exact_match_digits", "margin": 0.5}],
}


def test_tasks_of_the_harness_are_benchmarks_like_others(project, run, ran):
    harness_tasks.write(project / "tasks", num_items=8)
    leaked = {"instruction": "What colour is the quick answer 1? It is", "input": "", "output": "quick or brown."}
    rows = [leaked, *tiny.alpaca_rows(20)]
    tiny.write_jsonl(project / "data" / "leaked.jsonl", rows)
    changes = {
        "exams": EXAMS,
        "sources": [{"name": "first", "path": "data/leaked.jsonl", "format": "alpaca"}],
        "registry": {"model_name": "harnessed", "gate": GATE},
        "merge": {"validation_fraction": 0.3},
    }

    outcome = run(**changes)
    again = run(**changes)

    metrics = outcome.report.metrics()
    assert {"colours_acc", "colours_acc_norm", "sums_exact_match_digits", "exam_accuracy"} <= set(metrics)
    assert [metrics[name]["model"].num_items for name in ("colours_acc", "sums_exact_match_digits")] == [8, 6]
    marked = {each.benchmark: each.prompt for each in outcome.report.model if each.contamination}
    assert set(marked) == {"colours", "sums"}
    assert marked["colours"].endswith("What colour is the quick answer 1? It is")
    assert marked["sums"] == "What is 1 and 1?", "a row of the training data asks the same"
    assert {finding.metric for finding in outcome.decision.findings} == {"colours_acc_norm", "sums_exact_match_digits"}
    assert "lm_eval" in outcome.report.methods["colours_acc"]
    assert ran(again) == set()
