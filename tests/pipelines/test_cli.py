"""Commands on two real runs of the tiny model: `runs`, `models`, `compare`, `promote`, `history` and others."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from tests import tiny
from tuneline.cli.app import app
from tuneline.errors import NotFoundError

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
    """Names of two runs that differ in their learning rate."""
    tuneline("run", "run.yaml")
    faster = {**tiny.recipe()["train"], "learning_rate": 0.1, "max_steps": 8}
    tuneline("run", tiny.write_config(project / "faster.yaml", tiny.recipe(train=faster)))
    return [row["name"] for row in as_json("runs")][:2][::-1]  # runs of other test modules come first


def test_runs_shows_the_number_of_cached_steps(two_runs):
    newest = as_json("runs")[0]

    assert newest["status"] == "completed"
    assert (newest["steps_cached"], newest["steps_run"]) == (6, 5)


def test_models_prints_one_object_per_version(two_runs):
    versions = as_json("models")

    assert [(row["name"], row["version"]) for row in versions] == [("tiny", "2"), ("tiny", "1")]
    assert versions[0]["aliases"] == ["challenger"]
    assert versions[0]["run"] == two_runs[1]
    assert "challenger" in tuneline("models", "tiny")


def test_compare_shows_differing_settings_intervals_and_curves(two_runs, tmp_path):
    page = tmp_path / "comparison.html"

    text = tuneline("compare", *two_runs, "--html", page)

    assert "train.learning_rate" in text
    assert "method.r" not in text, "equal settings are not shown"
    html = page.read_text()
    assert "data:image/png;base64," in html
    assert "rougeL" in html
    assert "http" not in html.replace("http-equiv", ""), "the page loads nothing from other hosts"


def test_compare_accepts_models_and_shows_items_won_and_lost(two_runs, tmp_path):
    page = tmp_path / "comparison.html"
    tuneline("promote", "tiny", "1", "--force", "--reason", "to have a champion")

    text = tuneline("compare", "tiny@champion", "models:/tiny/2", "--html", page)

    assert two_runs[0].split("-")[0] in text
    assert re.search(r"Items that changed most in \w+, A to B", text)
    assert re.search(r"rougeL.* \d+ won, \d+ lost, \d+ equal", " ".join(text.split()))
    assert "Items that changed most" in page.read_text()


def test_a_model_card_shows_data_scores_and_what_was_not_recorded(two_runs):
    card = tuneline("card", "tiny", "2")

    assert card.startswith('---\nlicense: "other"\ntags: ')
    for text in ("# tiny version 2", "## Data", "| first |", "## Scores", "| rougeL |", "## License", "Not recorded:"):
        assert text in card
    assert "Kept as challenger: " in card
    assert "nothing was measured on safety" in card


def test_a_decision_is_logged_as_json_markdown_and_html(two_runs):
    from tuneline.tracking import registry
    from tuneline.tracking.decision import Decision
    from tuneline.zenml_integration import tracker

    tracker.connect()
    run_id = registry.find_version("tiny", "2").run_id
    texts = {
        kind: mlflow.artifacts.load_text(f"runs:/{run_id}/gate/decision.{kind}") for kind in ("json", "md", "html")
    }

    decision = Decision.model_validate_json(texts["json"])
    assert decision.sentence in texts["md"]
    assert texts["html"].startswith("<!doctype html>")
    assert [check.name for check in decision.checks] == ["template_parity", "merge_fidelity", "mask_coverage"]
    assert all(check.passed for check in decision.checks)


def test_promote_applies_another_gate_to_stored_scores(two_runs, tmp_path):
    gate = tmp_path / "gate.yaml"
    gate.write_text("targets:\n  - metric: rougeL\n    min_effect: 0.5\nguards:\n  - {metric: rouge1, margin: 0.9}\n")

    text = tuneline("promote", "tiny", "2", "--gate", gate, code=1)

    assert "not above the required +50.0" in text
    assert "rouge1" in text
    gate.write_text("targets:\n  - metric: mmlu_accuracy\n")
    result = CliRunner().invoke(app, ["promote", "tiny", "2", "--gate", str(gate)])
    assert "registry.gate.targets.0.metric: the report of the new model has no mmlu_accuracy" in str(result.exception)
    gate.write_text("targts: []\n")
    result = CliRunner().invoke(app, ["promote", "tiny", "2", "--gate", str(gate)])
    assert "gate.yaml:1: targts: unknown key. Did you mean 'targets'?" in str(result.exception)
    result = CliRunner().invoke(app, ["promote", "tiny", "--force", "--reason", "x", "--gate", str(gate)])
    assert str(result.exception) == "--force skips the gate, so --gate has no effect. Remove one of them."


def test_an_unknown_run_suggests_the_nearest(two_runs):
    result = CliRunner().invoke(app, ["compare", two_runs[0][:-1], two_runs[1]])

    assert f"Did you mean {two_runs[0]!r}?" in str(result.exception)


def test_promote_applies_the_gate_and_force_requires_a_reason(two_runs):
    assert "Kept as challenger" in tuneline("promote", "tiny", "2", code=1)
    result = CliRunner().invoke(app, ["promote", "tiny", "1", "--force"])
    assert str(result.exception).startswith("--force requires --reason")

    tuneline("promote", "tiny", "1", "--force", "--reason", "first of all")
    tuneline("promote", "tiny", "2", "--force", "--reason", "newer")

    assert {row["version"]: row["aliases"] for row in as_json("models")}["1"] == ["previous"]


def test_zenml_models_have_the_same_versions_and_aliases(two_runs):
    from zenml.client import Client

    tuneline("promote", "tiny", "1", "--force", "--reason", "one")
    tuneline("promote", "tiny", "2", "--force", "--reason", "two")
    one, two = (Client().get_model_version("tiny", name) for name in ("v1", "v2"))

    assert {tag.name for tag in two.tags} >= {"champion", "challenger"}
    assert {tag.name for tag in one.tags} == {"previous"}
    assert two.run_metadata["mlflow_model"] == "models:/tiny/2"
    assert "Kept as challenger" in two.run_metadata["decision"]
    assert two.get_artifact("sft_model") is not None


def test_rollback_restores_the_previous_champion_and_history_shows_it(two_runs):
    aliases = {alias: row["version"] for row in as_json("models") for alias in row["aliases"]}
    if "champion" not in aliases:
        tuneline("promote", "tiny", "1", "--force", "--reason", "a")
        tuneline("promote", "tiny", "2", "--force", "--reason", "b")

    assert "version 1 is champion again" in tuneline("rollback", "tiny", "--reason", "worse on Mondays")

    last = as_json("history", "tiny")[-2:]
    assert [(row["alias"], row["from"], row["to"]) for row in last] == [("champion", "2", "1"), ("previous", "1", None)]
    assert last[0]["why"] == "worse on Mondays"
    assert "The ledger is intact and agrees with the registry" in tuneline("history", "--verify")


def test_a_reason_with_brackets_is_printed_verbatim(two_runs):
    assert "(forced): fix [/b] now" in tuneline("promote", "tiny", "1", "--force", "--reason", "fix [/b] now")

    assert "[/b] now" in tuneline("history", "tiny")


def test_models_with_a_limit_also_shows_versions_with_an_alias(two_runs):
    tuneline("promote", "tiny", "1", "--force", "--reason", "the older one")

    (newest, oldest) = as_json("models", "tiny", "--limit", 1)
    assert (newest["version"], oldest["version"], "champion" in oldest["aliases"]) == ("2", "1", True)


def test_runs_are_read_over_several_pages(two_runs, monkeypatch):
    from tuneline.runner import runs

    expected = runs.latest(2)
    monkeypatch.setattr(runs, "PAGE_SIZE", 1)

    assert [run["id"] for run in runs.latest(2)] == [run["id"] for run in expected]
    assert len(expected) == 2


def test_doctor_reports_a_working_stack_and_tracker(project):
    rows = {row["check"]: row["status"] for row in as_json("doctor")}

    assert rows["stack"] == rows["mlflow"] == rows["torch"] == rows["device"] == "ok"


def test_init_again_changes_nothing(project):
    from zenml.client import Client

    before = Client().active_stack_model.id
    assert "is active in this folder" in tuneline("init")

    assert Client().active_stack_model.id == before


def test_init_does_not_change_the_active_stack_of_other_folders(project):
    config = Path(os.environ["ZENML_CONFIG_PATH"]) / "config.yaml"
    from zenml.client import Client

    assert str(Client().active_stack_model.id) not in config.read_text()


def test_init_accepts_an_existing_stack(project):
    from zenml.client import Client

    active_stack = Client().active_stack_model.name
    try:
        tuneline("init", "--stack", active_stack)
        result = CliRunner().invoke(app, ["init", "--stack", "defautl"])
        assert "Unknown stack 'defautl'. Did you mean 'default'?" in str(result.exception)
    finally:
        Client().activate_stack(active_stack)


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

    assert run.stdout.splitlines()[-1] == "[]", "no heavy library was imported"
    assert "num_train_epochs: 3.0" in run.stdout, "defaults are filled in"
    assert time.monotonic() - start < 30, "takes about a second; the limit allows for a busy machine"


def test_an_empty_history_is_an_empty_json_list(home):
    assert as_json("history") == []


def test_models_of_an_unknown_name_is_an_error(project):
    result = CliRunner().invoke(app, ["models", "nobody"])

    assert isinstance(result.exception, NotFoundError)
    assert "Unknown model 'nobody'" in str(result.exception)
