"""A search through the whole line: cut off and gone on with, data made once, the best run again with fresh seeds."""

import mlflow
import pytest

pytest.importorskip("optuna", reason="the extra search is not installed")

from tests import tiny
from tuneline.config import search
from tuneline.workflow import searches, tracker

pytestmark = pytest.mark.zenml


def test_a_search_that_was_cut_off_goes_on_and_confirms_its_best(project):
    path = tiny.write_config(project / "search.yaml", tiny.recipe(exams=[], registry={"model_name": "searched"}))
    ranges = ["train.learning_rate=log(1e-5,1e-2)", "method.r={2,4}"]
    outcomes = []

    def asked(trials):
        return search.search(path, ranges, trials=trials, objective="rouge1")

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
    assert found.best.score == max(trial.score for trial in found.trials)
    assert {len(line.scores) for line in found.lines} == {2}
    tracker.connect()
    client = mlflow.MlflowClient()
    experiment = client.get_run(found.run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{found.run_id}'")
    assert {run.info.run_name for run in children} == {outcome.run_name for outcome in outcomes}
    assert len(client.search_runs([experiment], "tags.`tuneline.kind` = 'search'")) == 1
    assert client.get_run(found.run_id).info.status == "FINISHED"
    assert client.list_artifacts(found.run_id)[0].path == "search.html"
    assert {run.data.params["train.seed"] for run in children} == {"0", "1", "2"}
