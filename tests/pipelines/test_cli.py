"""The command line as a person uses it, on two real runs of the tiny model."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import tiny
from tuneline.cli.main import app

pytestmark = pytest.mark.zenml


def tuneline(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if code == 0 and result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def as_json(*arguments):
    text = tuneline(*arguments, "--json")
    return json.loads(text[text.index("[") :])


@pytest.fixture(scope="module")
def two_runs(project):
    """Two runs that differ by their learning rate."""
    tuneline("run", "run.yaml")
    faster = {**tiny.recipe()["train"], "learning_rate": 0.1, "max_steps": 8}
    tuneline("run", tiny.write_config(project / "faster.yaml", tiny.recipe(train=faster)))
    return [row["name"] for row in as_json("runs")][::-1]


def test_runs_say_what_was_cached(two_runs):
    newest = as_json("runs")[0]

    assert newest["status"] == "completed"
    assert (newest["steps_cached"], newest["steps_run"]) == (6, 5)


def test_models_are_a_list_with_one_object_a_version(two_runs):
    found = as_json("models")

    assert [(row["name"], row["version"]) for row in found] == [("tiny", "2"), ("tiny", "1")]
    assert found[0]["aliases"] == ["challenger"]
    assert found[0]["run"] == two_runs[1]
    assert "challenger" in tuneline("models", "tiny")


def test_compare_tells_what_differs_with_intervals_and_curves(two_runs, tmp_path):
    page = tmp_path / "comparison.html"

    text = tuneline("compare", *two_runs, "--html", page)

    assert "train.learning_rate" in text
    assert "method.r" not in text, "what is equal is not shown"
    html = page.read_text()
    assert "data:image/png;base64," in html
    assert "rougeL" in html
    assert "http" not in html.replace("http-equiv", ""), "the page needs nothing from elsewhere"


def test_an_unknown_run_suggests_the_nearest(two_runs):
    result = CliRunner().invoke(app, ["compare", two_runs[0][:-1], two_runs[1]])

    assert f"Did you mean {two_runs[0]!r}?" in str(result.exception)


def test_promotion_by_hand_asks_the_gate_and_force_needs_a_reason(two_runs):
    assert "Kept as challenger" in tuneline("promote", "tiny", "2", code=1)
    assert CliRunner().invoke(app, ["promote", "tiny", "1", "--force"]).exit_code == 2

    tuneline("promote", "tiny", "1", "--force", "--reason", "first of all")
    tuneline("promote", "tiny", "2", "--force", "--reason", "newer")

    assert {row["version"]: row["aliases"] for row in as_json("models")}["1"] == ["previous"]


def test_rollback_gives_the_alias_back_and_history_tells(two_runs):
    aliases = {alias: row["version"] for row in as_json("models") for alias in row["aliases"]}
    if "champion" not in aliases:
        tuneline("promote", "tiny", "1", "--force", "--reason", "a")
        tuneline("promote", "tiny", "2", "--force", "--reason", "b")

    assert "version 1 is champion again" in tuneline("rollback", "tiny", "--reason", "worse on Mondays")

    last = as_json("history", "tiny")[-2:]
    assert [(row["alias"], row["from"], row["to"]) for row in last] == [("champion", "2", "1"), ("previous", "1", None)]
    assert last[0]["why"] == "worse on Mondays"
    assert "The ledger is whole" in tuneline("history", "--verify")


def test_doctor_finds_the_stack_and_the_tracker(project):
    rows = {row["what"]: row["status"] for row in as_json("doctor")}

    assert rows["stack"] == rows["mlflow"] == rows["torch"] == rows["device"] == "ok"


def test_init_again_changes_nothing(project):
    from zenml.client import Client

    before = Client().active_stack_model.id
    assert "is active in this folder" in tuneline("init")

    assert Client().active_stack_model.id == before


def test_the_users_other_folders_keep_their_stack(project):
    config = Path(os.environ["ZENML_CONFIG_PATH"]) / "config.yaml"
    from zenml.client import Client

    assert str(Client().active_stack_model.id) not in config.read_text()


def test_init_takes_a_stack_of_the_users(project):
    from zenml.client import Client

    ours = Client().active_stack_model.name
    try:
        tuneline("init", "--stack", ours)
        result = CliRunner().invoke(app, ["init", "--stack", "defautl"])
        assert "Unknown stack 'defautl'. Did you mean 'default'?" in str(result.exception)
    finally:
        Client().activate_stack(ours)


def test_plan_shows_the_resolved_recipe_without_importing_torch(project):
    code = (
        "import sys; sys.argv = ['tuneline', 'plan', 'run.yaml']\n"
        "from tuneline.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'zenml', 'mlflow', 'datasets') if name in sys.modules])"
    )
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)

    assert run.stdout.splitlines()[-1] == "[]", "nothing heavy was imported"
    assert "num_train_epochs: 3.0" in run.stdout, "defaults are filled in"
    assert time.monotonic() - start < 30, "no order of magnitude slower than a second, even on a busy machine"


def test_a_list_is_empty_json_where_there_is_nothing(home):
    assert as_json("history") == []
