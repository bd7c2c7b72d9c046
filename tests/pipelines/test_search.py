"""A search through the whole line: cut off and gone on with, data made once, the best run again with fresh seeds."""

import mlflow
import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from tests import tiny
from tuneline.config.experiments import search
from tuneline.runner import searches
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml


def test_a_search_that_was_cut_off_goes_on_and_confirms_its_best(project):
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

    def asked(trials):
        return search.parse_search(path, ranges, trials=trials)

    def cut_off(name, outcome):
        outcomes.append(outcome)
        if len(outcomes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searches.run("search of tiny", asked(3), 2, cut_off)
    found = searches.run("search of tiny", asked(3), 2, lambda name, outcome: outcomes.append(outcome))

    assert len(outcomes) == 3 + 2 * 2, "two trials of the first time are not run again"
    tokenized = [step.status for outcome in outcomes for step in outcome.steps if step.name == "tokenize_pack"]
    assert [status == "cached" for status in tokenized] == [False] + [True] * 6
    assert search.selection_warning(asked(3)) == "", "the gate asks for the exam"
    scores = [trial.score for trial in found.trials]
    assert found.best.score == max(scores) > min(scores)
    assert [line.name.startswith("best: learning_rate") for line in found.lines] == [True, False]
    assert all(len(line.scores) == 2 for line in found.lines)
    assert "are significantly better than those of the recipe" in found.verdict
    _held_in_mlflow(found, outcomes)


def _held_in_mlflow(found, outcomes):
    tracker.connect()
    client = mlflow.MlflowClient()
    experiment = client.get_run(found.run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{found.run_id}'")
    assert {run.info.run_name for run in children} == {outcome.run_name for outcome in outcomes}
    assert {run.data.params["train.seed"] for run in children} == {"0", "1", "2"}
    assert len(client.search_runs([experiment], "tags.`tuneline.kind` = 'search'")) == 1
    assert client.get_run(found.run_id).info.status == "FINISHED"
    assert client.list_artifacts(found.run_id)[0].path == "search.html"
