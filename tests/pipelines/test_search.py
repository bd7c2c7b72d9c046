"""A hyperparameter search: interrupted and resumed, data prepared once, the best trial confirmed with other seeds."""

import mlflow
import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from tests import tiny
from tuneline.config.experiments import search
from tuneline.runner import searches
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml


def test_an_interrupted_search_resumes_and_confirms_its_best_trial(project):
    tiny.write_texts(project / "data" / "texts.jsonl")
    changes = {
        "stage": "pretrain",
        "sources": [{"name": "texts", "path": "data/texts.jsonl", "format": "text"}],
        "registry": {"model_name": "searched", "gate": {"metric": "exam_accuracy"}},
        "train": {"learning_rate": 1e-6, "max_steps": 12},
        "method": {"type": "full"},
    }
    exams = [{"name": "exam", "path": tiny.write_exam(project / "five").name, "num_shots": 0}]
    (project / "five" / "test" / "numbers.csv").write_text(
        "".join(f"Which is {i}?,one,two,three,four,{'ABCD'[i % 4]}\n" for i in range(8))
    )
    path = tiny.write_config(project / "search.yaml", tiny.recipe(**changes, exams=exams))
    ranges = ["train.learning_rate=log(1e-4,2e-2)", "train.weight_decay={0.0,0.01}"]
    outcomes = []

    def parse(trials):
        return search.parse_search(path, ranges, trials=trials)

    def interrupt(name, outcome):
        outcomes.append(outcome)
        if len(outcomes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searches.run("search of tiny", parse(3), 2, interrupt)
    result = searches.run("search of tiny", parse(3), 2, lambda name, outcome: outcomes.append(outcome))

    assert len(outcomes) == 3 + 2 * 2, "the two finished trials are not run again"
    statuses = [step.status for outcome in outcomes for step in outcome.steps if step.name == "tokenize_pack"]
    assert [status == "cached" for status in statuses] == [False] + [True] * 6
    assert search.selection_warning(parse(3)) == "", "the gate uses the exam"
    scores = [trial.score for trial in result.trials]
    assert result.best.score == max(scores) > min(scores)
    assert [line.name.startswith("best: learning_rate") for line in result.lines] == [True, False]
    assert all(len(line.scores) == 2 for line in result.lines)
    assert "are significantly better than those of the recipe" in result.verdict
    check_mlflow_runs(result, outcomes)


def check_mlflow_runs(result, outcomes):
    tracker.connect()
    client = mlflow.MlflowClient()
    experiment = client.get_run(result.run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{result.run_id}'")
    assert {run.info.run_name for run in children} == {outcome.run_name for outcome in outcomes}
    assert {run.data.params["train.seed"] for run in children} == {"0", "1", "2"}
    assert len(client.search_runs([experiment], "tags.`tuneline.kind` = 'search'")) == 1
    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert client.list_artifacts(result.run_id)[0].path == "search.html"
