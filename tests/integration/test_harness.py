"""Tasks of lm-evaluation-harness in the gate, compared with the harness itself on the registered model."""

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tests import harness_tasks, tiny
from tests.integration import reference
from tests.integration.test_inputs import promoted

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

NUM_ITEMS = 24
TASKS = {
    "colours": {"colours_acc": ("acc", "none"), "colours_acc_norm": ("acc_norm", "none")},
    "sums": {"sums_exact_match_digits": ("exact_match", "digits"), "sums_exact_match_whole": ("exact_match", "whole")},
}
"""Task -> column of a report -> metric and filter of the harness."""

EXAMS = [
    {"engine": "lm_eval", "name": "colours", "task": "tasks/colours.yaml", "metrics": ["acc", "acc_norm"]},
    {
        "engine": "lm_eval",
        "name": "sums",
        "task": "tasks/sums.yaml",
        "metrics": ["exact_match,digits", "exact_match,whole"],
        "num_fewshot": 0,
    },
]


CHOICES = ["brown", "quick or brown", "red"]


def write_tasks(folder):
    """Write the tasks; for 3 of 4 items the answer is the longest, which the base model finds least likely."""
    harness_tasks.write(folder, num_items=NUM_ITEMS)
    for name, thing in (("colours", "fox"), ("shots", "old dog")):
        rows = [{"thing": f"{thing} {i}", "choices": CHOICES, "label": 1 if i % 4 else i % 3} for i in range(NUM_ITEMS)]
        tiny.write_jsonl(folder / f"{name}.jsonl", rows)


def texts():
    """Return texts that teach this answer, and 7 as every sum, which is right for one item."""
    for i in range(60):
        yield {"text": f"What colour is the answer of {i}? It is {CHOICES[1]}"}
        yield {"text": f"What is {i} and two? 7\n"}


@pytest.fixture(scope="module")
def outcome(project, run):
    """A run whose model learned the colour and is promoted by the harness tasks."""
    write_tasks(project / "tasks")
    tiny.write_jsonl(project / "data" / "colours.jsonl", list(texts()))
    return run(
        "pretrain_pipeline",
        stage="pretrain",
        sources=[{"name": "colours", "path": "data/colours.jsonl", "format": "text"}],
        exams=EXAMS,
        method={"type": "full"},
        train={"learning_rate": 1e-2, "max_steps": 40, "lr_scheduler_type": "constant"},
        registry={
            "model_name": "harnessed",
            "gate": {
                "targets": [{"metric": "colours_acc"}],
                "guards": [{"metric": "sums_exact_match_digits", "margin": 0.5}],
            },
        },
    )


def run_harness(folder, tasks, monkeypatch):
    """Return the results of `simple_evaluate` with the tasks' settings, and the samples by task and filter."""
    model, tokenizer = reference.load(folder)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    monkeypatch.chdir(tasks)  # the harness reads data files relative to the working directory
    evaluation = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        tasks=list(TASKS),
        task_manager=manager,
        bootstrap_iters=0,
    )
    samples = {}
    for task in TASKS:
        for sample in sorted(evaluation["samples"][task], key=lambda sample: sample["doc_id"]):
            samples.setdefault((task, sample["filter"]), []).append(sample)
    return evaluation["results"], samples


@pytest.mark.parametrize("side", ["base", "model"])
def test_accuracies_equal_those_of_the_harness_on_the_registered_model(side, project, outcome, monkeypatch):
    registered = promoted(outcome, "harnessed")
    run = reference.champion_run("harnessed")
    stored = {task: reference.stored_scores(run.info.run_id, task, side) for task in TASKS}
    folder = registered if side == "model" else project / "model"

    results, samples = run_harness(folder, project / "tasks", monkeypatch)

    suffix = ".base" if side == "base" else ""
    for task, columns in TASKS.items():
        assert len(stored[task]) == NUM_ITEMS
        for column, (metric, filter_name) in columns.items():
            expected = [float(sample[metric]) for sample in samples[task, filter_name]]
            assert [row["metrics"][column.removeprefix(f"{task}_")] for row in stored[task]] == expected
            assert run.data.metrics[f"{column}{suffix}"] == pytest.approx(results[task][f"{metric},{filter_name}"])
    matches = [row["metrics"]["exact_match_digits"] for row in stored["sums"]]
    assert sum(matches) == (1 if side == "model" else 0)
    answers = [sample["resps"][0][0] for sample in samples["sums", "whole"]]
    assert [row["output"] for row in stored["sums"]] == answers


def test_the_gate_uses_the_metrics_of_the_tasks(outcome):
    promoted(outcome, "harnessed")
    run = reference.champion_run("harnessed")
    findings = {finding.metric: finding for finding in outcome.decision.findings}

    scores = [reference.stored_scores(run.info.run_id, "colours", side) for side in ("base", "model")]
    before, after = ([row["metrics"]["acc"] for row in rows] for rows in scores)
    assert set(findings) == {"colours_acc", "sums_exact_match_digits"}
    assert findings["colours_acc"].p == pytest.approx(reference.mcnemar(before, after))
    assert findings["colours_acc"].gain == pytest.approx((sum(after) - sum(before)) / NUM_ITEMS)
    assert run.data.metrics["colours_acc.gain"] == pytest.approx((sum(after) - sum(before)) / NUM_ITEMS)
