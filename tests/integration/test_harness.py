"""Tasks of lm-evaluation-harness through the gate, and by the harness alone on the registered model."""

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
    """Write the tasks; three of four things have the colour that the base model finds least likely, the longest."""
    harness_tasks.write(folder, num_items=NUM_ITEMS)
    for name, thing in (("colours", "fox"), ("shots", "old dog")):
        rows = [{"thing": f"{thing} {i}", "choices": CHOICES, "label": 1 if i % 4 else i % 3} for i in range(NUM_ITEMS)]
        tiny.write_jsonl(folder / f"{name}.jsonl", rows)


def texts():
    """Return texts that teach that colour, and that every sum is 7, which one item is."""
    for i in range(60):
        yield {"text": f"What colour is the answer of {i}? It is {CHOICES[1]}"}
        yield {"text": f"What is {i} and two? 7\n"}


@pytest.fixture(scope="module")
def outcome(project, run):
    """A model that learned a colour, promoted by the harness' tasks."""
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


def by_the_harness(folder, tasks, monkeypatch):
    """Return what `simple_evaluate` finds with the tasks' own settings: results, and samples by task and filter."""
    model, tokenizer = reference.load(folder)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    monkeypatch.chdir(tasks)  # the harness reads data files relative to the working directory
    found = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1),
        tasks=list(TASKS),
        task_manager=manager,
        bootstrap_iters=0,
    )
    samples = {}
    for task in TASKS:
        for each in sorted(found["samples"][task], key=lambda sample: sample["doc_id"]):
            samples.setdefault((task, each["filter"]), []).append(each)
    return found["results"], samples


@pytest.mark.parametrize("who", ["base", "model"])
def test_accuracies_are_those_of_the_harness_on_the_registered_model(who, project, outcome, monkeypatch):
    registered = promoted(outcome, "harnessed")
    run = reference.champion_run("harnessed")
    stored = {task: reference.stored_scores(run.info.run_id, task, who) for task in TASKS}
    folder = registered if who == "model" else project / "model"

    results, samples = by_the_harness(folder, project / "tasks", monkeypatch)

    suffix = ".base" if who == "base" else ""
    for task, columns in TASKS.items():
        assert len(stored[task]) == NUM_ITEMS
        for column, (metric, filter_name) in columns.items():
            theirs = [float(each[metric]) for each in samples[task, filter_name]]
            assert [each["metrics"][column.removeprefix(f"{task}_")] for each in stored[task]] == theirs
            assert run.data.metrics[f"{column}{suffix}"] == pytest.approx(results[task][f"{metric},{filter_name}"])
    right = [each["metrics"]["exact_match_digits"] for each in stored["sums"]]
    assert sum(right) == (1 if who == "model" else 0)
    said = [sample["resps"][0][0] for sample in samples["sums", "whole"]]
    assert [each["output"] for each in stored["sums"]] == said


def test_the_gate_judged_by_the_tasks(outcome):
    promoted(outcome, "harnessed")
    run = reference.champion_run("harnessed")
    findings = {each.metric: each for each in outcome.decision.findings}

    rows = [reference.stored_scores(run.info.run_id, "colours", who) for who in ("base", "model")]
    before, after = ([each["metrics"]["acc"] for each in found] for found in rows)
    assert set(findings) == {"colours_acc", "sums_exact_match_digits"}
    assert findings["colours_acc"].p == pytest.approx(reference.mcnemar(before, after))
    assert findings["colours_acc"].gain == pytest.approx((sum(after) - sum(before)) / NUM_ITEMS)
    assert run.data.metrics["colours_acc.gain"] == pytest.approx((sum(after) - sum(before)) / NUM_ITEMS)
