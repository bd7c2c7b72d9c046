"""Sweeps and searches on the command line; the best setting is recomputed from MLflow and the models."""

from collections import defaultdict
from statistics import fmean

import mlflow
import pytest
from typer.testing import CliRunner

pytest.importorskip("optuna", reason="the extra search is not installed")

import optuna

from tests import tiny
from tests.integration import reference
from tests.integration.test_inputs import TEXTS
from tuneline import state
from tuneline.cli.app import app
from tuneline.zenml_integration import tracker

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

METRIC = "log_likelihood"
RATE = "train.learning_rate"


@pytest.fixture
def recipe(project):
    """Return a function that writes a recipe for a short training on texts with the given model name."""
    tiny.write_texts(project / "data" / "texts.jsonl", 60)

    def write(name):
        changes = {
            **TEXTS,
            "method": {"type": "full"},
            "train": {"learning_rate": 1e-4, "max_steps": 12, "lr_scheduler_type": "constant"},
            "registry": {"model_name": name, "gate": {"metric": METRIC}},
        }
        return tiny.write_config(project / f"{name}.yaml", tiny.recipe(**changes))

    return write


def invoke(*arguments):
    """Run `tuneline sweep` and return its output."""
    result = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    assert result.exit_code == 0, result.output or result.exception
    tracker.connect()
    return result.stdout


def parent_and_children(kind):
    """Return the only MLflow run of a kind and its child runs, oldest first."""
    client = mlflow.MlflowClient()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = client.search_runs(experiments, f"tags.`tuneline.kind` = '{kind}'")
    child_filter = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    return parent, client.search_runs(experiments, child_filter, order_by=["attributes.start_time ASC"])


def check_score(name, run):
    """Score the registered version of a run on its stored items; compare with the score that the run logged."""
    version = mlflow.MlflowClient().get_model_version(name, run.data.tags["tuneline.version"])
    model, tokenizer = reference.load(reference.folder_of(version))
    items = reference.stored_scores(run.info.run_id)
    assert len(items) > 5
    mean = fmean(reference.text_log_likelihood(model, tokenizer, item["prompt"]) for item in items)
    assert run.data.metrics[METRIC] == pytest.approx(mean, abs=2e-4)
    return mean


def test_a_sweep_reports_the_best_setting_and_promotes_one_of_its_runs(recipe):
    output = invoke(recipe("swept"), "--set", f"{RATE}=0.0001,0.01,0.001", "--seeds", 2)

    parent, children = parent_and_children("sweep")
    scores = defaultdict(dict)
    for run in children:
        scores[run.data.params[RATE]][run.info.run_id] = check_score("swept", run)
    means = sorted(((fmean(by_run.values()), rate) for rate, by_run in scores.items()), reverse=True)
    assert {rate: len(by_run) for rate, by_run in scores.items()} == {"0.0001": 2, "0.01": 2, "0.001": 2}
    assert {run.data.params["train.seed"] for run in children} == {"0", "1"}
    assert means[0][0] > means[1][0] + 0.05 > means[2][0] + 0.05, "the settings differ"
    assert parent.data.tags["tuneline.best"] == f"learning_rate {means[0][1]}"
    history = mlflow.MlflowClient().get_metric_history(parent.info.run_id, f"sweep.{METRIC}")
    assert [point.value for point in history] == pytest.approx([mean for mean, _ in means], abs=2e-4)
    assert reference.champion_run("swept").info.run_id in scores[means[0][1]]
    table_rows = [line for line in output.splitlines() if "learning_rate" in line and "│" in line]
    assert [means[i][1] in line for i, line in enumerate(table_rows)] == [True] * 3


def test_a_search_reports_the_best_trial_and_reruns_it_with_other_seeds(recipe):
    ranges = f"{RATE}=log(1e-4,2e-2)"
    output = invoke(recipe("searched"), "--search", ranges, "--trials", 3, "--seeds", 1, "--sampler", "random")

    parent, children = parent_and_children("search")
    scores = [check_score("searched", run) for run in children]
    rates = [float(run.data.params[RATE]) for run in children]
    seeds = [run.data.params["train.seed"] for run in children]
    assert seeds == ["0", "0", "0", "1", "1"], "three trials, then the best and the recipe's own values"
    best = max(range(3), key=scores.__getitem__)
    assert len({round(score, 3) for score in scores[:3]}) == 3
    assert rates[3:] == [rates[best], 1e-4]
    assert parent.data.tags["tuneline.best"] == f"learning_rate {rates[best]:.3g}"
    history = mlflow.MlflowClient().get_metric_history(parent.info.run_id, f"search.{METRIC}")
    assert [point.value for point in history] == pytest.approx(scores[:3], abs=2e-4)

    (study,) = optuna.get_all_study_summaries(f"sqlite:///{state.root() / 'searches' / 'optuna.db'}")
    assert study.best_trial.params == {RATE: rates[best]}
    assert study.best_trial.value == pytest.approx(scores[best], abs=2e-4)
    (table_row,) = [line for line in output.splitlines() if "best of the search" in line]
    assert table_row.split("│")[1].strip() == str(best + 1)
    champion = reference.champion_run("searched")
    assert champion.info.run_id in {children[best].info.run_id, children[3].info.run_id}
