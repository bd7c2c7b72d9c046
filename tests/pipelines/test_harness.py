"""Tasks of lm-evaluation-harness in a pipeline: reported, used by the gate, cached, checked for contamination."""

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


def test_harness_tasks_are_reported_gated_cached_and_checked_for_contamination(project, run, executed_steps):
    harness_tasks.write(project / "tasks", num_items=8)
    leaked_row = {"instruction": "What colour is the quick answer 1? It is", "input": "", "output": "quick or brown."}
    rows = [leaked_row, *tiny.alpaca_rows(20)]
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
    contaminated = {score.benchmark: score.prompt for score in outcome.report.model if score.contamination}
    assert set(contaminated) == {"colours", "sums"}
    assert contaminated["colours"].endswith("What colour is the quick answer 1? It is")
    assert contaminated["sums"] == "What is 1 and 1?", "a training row has the same question"
    assert {finding.metric for finding in outcome.decision.findings} == {"colours_acc_norm", "sums_exact_match_digits"}
    assert "lm_eval" in outcome.report.methods["colours_acc"]
    assert executed_steps(again) == set()
