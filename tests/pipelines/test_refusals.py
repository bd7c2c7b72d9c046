"""Invalid input ends before training with one error and exit code 2, and registers nothing.

Each case runs twice: with `tuneline run`, which prints only the message, and with `zenml pipeline run`, which prints it
as its last line.
"""

import json
import shutil

import mlflow
import pytest
from click.testing import CliRunner as ClickRunner

from tests import harness_tasks, tiny
from tuneline import owner
from tuneline.cli import main as cli
from tuneline.zenml_integration import abandoned_runs, tracker

pytestmark = pytest.mark.zenml


def source_with(project, text):
    (project / "data" / "bad.jsonl").write_text(text)
    return {"sources": [{"name": "bad", "path": "data/bad.jsonl", "format": "alpaca"}]}


def exam_with(project, name, text):
    tiny.write_exam(project / name)
    (project / name / "test" / "numbers.csv").write_text(text)
    return {"exams": [{"name": "exam", "path": name}]}


def harness_task(project, **changes):
    harness_tasks.write(project / "tasks")
    return {"exams": [{"engine": "lm_eval", "name": "h", "task": "tasks/colours.yaml", "metrics": ["acc"], **changes}]}


def harness_without_data(project):
    changes = harness_task(project)
    (project / "tasks" / "colours.jsonl").unlink()
    return changes


def model_without_weights(project):
    folder = shutil.copytree(project / "model", project / "empty", dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    return {"model": {"type": "directory", "path": "empty"}}


def rows_with_shared_wording(project):
    shared = "Answer as the friendly clerk of a small bank would, in one sentence, without any name"
    rows = [{"instruction": f"{shared} {i}", "output": f"{i}"} for i in range(40)]
    return {
        **source_with(project, "".join(json.dumps(row) + "\n" for row in rows)),
        "merge": {"validation_fraction": 0.3, "boilerplate_rows": 40},
    }


GOOD = json.dumps(tiny.alpaca_rows(1)[0])
CASES = {
    "unknown key": (
        lambda p: {"train": {**tiny.recipe()["train"], "learing_rate": 1}},
        "train.learing_rate: unknown key. Did you mean 'learning_rate'?",
    ),
    "wrong type": (
        lambda p: {"tokenize": {"max_length": "long"}},
        "tokenize.max_length: Input should be a valid integer",
    ),
    "missing data file": (
        lambda p: {"sources": [{"name": "gone", "path": "data/gone.jsonl", "format": "alpaca"}]},
        "sources.gone.path: file",
    ),
    "malformed JSONL": (lambda p: source_with(p, f'{GOOD}\n{{"instruction": \n'), "bad.jsonl:2: not valid JSON"),
    "missing column": (
        lambda p: source_with(p, f'{GOOD}\n{{"instruction": "a"}}\n'),
        "bad.jsonl:2: a row in alpaca format needs",
    ),
    "empty dataset": (lambda p: source_with(p, "\n"), "bad.jsonl holds no rows"),
    "too few clean held-out rows": (rows_with_shared_wording, "so 0 clean ones are left; at least 5 are required"),
    "unknown format": (
        lambda p: {"sources": [{"name": "first", "path": "data/first.jsonl", "format": "alpacca"}]},
        "unknown format 'alpacca'. Did you mean 'alpaca'?",
    ),
    "unknown method": (lambda p: {"method": {"type": "lorra"}}, "unknown method 'lorra'. Did you mean 'lora'?"),
    "unknown metric": (
        lambda p: {"evaluate": {"metrics": ["rougel"]}},
        "unknown metric 'rougel'. Did you mean 'rougeL'?",
    ),
    "gate without its metric": (
        lambda p: {"exams": [], "registry": {"model_name": "tiny", "gate": {"metric": "exam_accuracy"}}},
        "registry.gate.metric: this recipe does not measure exam_accuracy",
    ),
    "exam without data": (
        lambda p: {"exams": [{"name": "exam", "path": "data"}]},
        "exams.exam.path:",
    ),
    "exam without a column": (
        lambda p: exam_with(p, "narrow", "question,A,B,C,answer\nWhich?,one,two,three,A\n"),
        "the column D is missing",
    ),
    "exam with a wrong letter": (
        lambda p: exam_with(p, "wrong", "Which?,one,two,three,four,E\n"),
        "numbers.csv:1: the answer must be one of A, B, C, D; got 'E'.",
    ),
    "harness without data": (
        harness_without_data,
        "exams.h.task: data file 'colours.jsonl' of task colours not found",
    ),
    "harness without the metric": (
        lambda p: harness_task(p, metrics=["acc_nrom"]),
        "task colours has no metric 'acc_nrom'. Did you mean 'acc_norm'?",
    ),
    "no weights": (model_without_weights, "does not contain weights (*.safetensors)"),
    "other hash": (
        lambda p: {"model": {"type": "directory", "path": "model", "sha256": "0" * 64}},
        "expected 0000000000000000000000000000000000000000000000000000000000000000",
    ),
}


@pytest.fixture
def run_invalid(project, capfd, monkeypatch):
    """Return a function that runs a recipe both ways and returns exit code and error lines of each."""
    import logging

    from zenml.cli.cli import cli as zenml_cli

    def run(**changes):
        path = tiny.write_config(project / "bad.yaml", tiny.recipe(**changes))
        monkeypatch.setattr("sys.argv", ["tuneline", "run", str(path)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
        logging.getLogger("zenml").setLevel(logging.CRITICAL)
        zenml_run = ClickRunner().invoke(zenml_cli, ["pipeline", "run", "sft_pipeline", "--config", str(path)])
        zenml_lines = [line for line in (zenml_run.output + capfd.readouterr().err).splitlines() if line.strip()]
        return (exit_info.value.code, lines), (zenml_run.exit_code, zenml_lines)

    return run


def versions():
    from tuneline.tracking import registry
    from tuneline.zenml_integration import tracker

    tracker.connect()
    return registry.list_versions()


@pytest.mark.parametrize("case", CASES)
def test_invalid_input_is_one_error_before_training(case, project, run_invalid, monkeypatch):
    make_changes, message = CASES[case]
    monkeypatch.setattr("tuneline.train.training_run.train", lambda *a, **k: pytest.fail("training began"))

    (code, lines), (zenml_code, zenml_lines) = run_invalid(**make_changes(project))

    assert code == zenml_code == 2
    assert len(lines) == 1, "one line"
    assert message in lines[-1]
    assert message in zenml_lines[-1]
    assert versions() == []


def test_an_unreachable_mlflow_server_is_an_error(project, run_invalid):
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind

    client = Client()
    stack = client.active_stack_model
    parts = {kind: components[0].id for kind, components in stack.components.items()}
    parts[Kind.EXPERIMENT_TRACKER] = client.create_stack_component(
        "dead", "mlflow", Kind.EXPERIMENT_TRACKER, {"tracking_uri": "http://127.0.0.1:9", "tracking_token": "unused"}
    ).id
    client.create_stack("with-dead-tracker", {kind: parts[kind] for kind in parts})
    client.activate_stack("with-dead-tracker")
    try:
        (code, lines), (zenml_code, zenml_lines) = run_invalid()
    finally:
        client.activate_stack(stack.name)

    assert code == zenml_code == 2
    assert "MLflow does not respond at http://127.0.0.1:9" in lines[-1]
    assert "MLflow does not respond at http://127.0.0.1:9" in zenml_lines[-1]


def test_a_stack_without_a_tracker_is_an_error(project, run_invalid):
    from zenml.client import Client

    client = Client()
    active_stack = client.active_stack_model.name
    client.activate_stack("default")
    try:
        (code, lines), (zenml_code, zenml_lines) = run_invalid()
    finally:
        client.activate_stack(active_stack)

    assert code == zenml_code == 2
    assert "The active ZenML stack 'default' has no MLflow experiment tracker. Run `tuneline init`" in lines[-1]
    assert zenml_lines[-1] == lines[-1]


def test_a_changed_or_missing_champion_is_an_error_before_training(project, run_invalid):
    import mlflow

    from tuneline.tracking import promotion, registry
    from tuneline.zenml_integration import tracker

    tracker.connect()
    run = mlflow.MlflowClient().create_run("0")
    sha256 = tiny.store_model(project / "nowhere", "weights")
    version, _ = registry.register("tiny", sha256, (project / "nowhere").as_uri(), run.info.run_id, {})
    files = project / "nowhere" / "files"
    promotion.force("tiny", version.version, "for the test")
    (files / "model.safetensors").write_text("Weights")

    (code, lines), (zenml_code, zenml_lines) = run_invalid()

    assert code == zenml_code == 2
    assert zenml_lines[-1] == lines[-1]
    assert "tiny version 1 (champion): " in lines[-1]
    assert "model.safetensors has the sha256" in lines[-1]
    shutil.rmtree(files)

    (code, lines), (zenml_code, zenml_lines) = run_invalid()

    assert code == zenml_code == 2
    assert "The files of tiny version 1 (champion) are missing in" in lines[-1]
    assert "The files of tiny version 1 (champion) are missing in" in zenml_lines[-1]
    tracker.connect()
    assert [version.version for version in registry.list_versions("tiny")] == ["1"], "no version was added"


def test_a_duplicate_schedule_name_is_an_error(project, capfd):
    from zenml.cli.cli import cli as zenml_cli

    schedule = {"name": "taken", "cron_expression": "0 3 * * *"}
    path = tiny.write_config(project / "schedule.yaml", tiny.recipe(), schedule=schedule)
    command = ["pipeline", "run", "sft_pipeline", "--config", str(path)]
    assert ClickRunner().invoke(zenml_cli, command).exit_code == 0

    again = ClickRunner().invoke(zenml_cli, command)

    assert again.exit_code == 2
    assert (
        "schedule.name: Unable to create the requested schedule with name 'taken'"
        in again.output + capfd.readouterr().err
    )


def test_unsupported_schedule_times_are_an_error_and_are_not_recorded(project, capfd):
    from zenml.cli.cli import cli as zenml_cli
    from zenml.client import Client

    schedule = {"name": "odd", "cron_expression": "0 3 * * *", "end_time": "2031-01-01"}
    path = tiny.write_config(project / "odd.yaml", tiny.recipe(), schedule=schedule)

    result = ClickRunner().invoke(zenml_cli, ["pipeline", "run", "sft_pipeline", "--config", str(path)])

    assert result.exit_code == 2
    assert "odd.yaml:4: schedule.end_time: tuneline scheduler only supports" in result.output + capfd.readouterr().err
    assert "odd" not in [schedule.name for schedule in Client().list_schedules().items]


def test_unsupported_schedule_times_in_python_code_are_an_error_and_are_not_recorded(project):
    from datetime import UTC, datetime

    from zenml.client import Client
    from zenml.config.schedule import Schedule

    from pipelines import sft_pipeline
    from tuneline.config import load
    from tuneline.errors import TunelineError

    recipe = load.load(project / "run.yaml").recipe
    when = datetime(2031, 1, 1, tzinfo=UTC)
    for times in ({"run_once_start_time": when}, {"cron_expression": "0 0 30 2 *"}):
        scheduled = sft_pipeline.with_options(schedule=Schedule(name="odd", **times))
        with pytest.raises(TunelineError, match=r"schedule\.\w+: .* is not supported by the scheduler of this machine"):
            scheduled(recipe=recipe)
        assert "odd" not in [schedule.name for schedule in Client().list_schedules().items]


def test_a_stack_that_does_not_support_schedules_is_an_error(project, monkeypatch):
    from tuneline.cli import main
    from tuneline.zenml_integration.orchestrator import ScheduledLocalOrchestratorConfig

    monkeypatch.setattr(ScheduledLocalOrchestratorConfig, "is_schedulable", property(lambda self: False))
    path = tiny.write_config(project / "odd.yaml", tiny.recipe(), schedule={"cron_expression": "0 3 * * *"})
    monkeypatch.setattr("sys.argv", ["tuneline", "run", str(path)])

    with pytest.raises(SystemExit) as exit_info:
        main.main()

    assert exit_info.value.code == 2


def test_a_failed_run_is_closed_in_mlflow_after_zenml_resets_the_tracking_uri(project, monkeypatch):
    uri = tracker.connect()
    closed = []

    def fail():
        owner.current_owner().add(abandoned_runs.SNAPSHOTS, "store snapshot")
        mlflow.set_tracking_uri("")  # as ZenML does after each step with a tracker
        raise KeyError

    monkeypatch.setattr(
        abandoned_runs, "_fail_runs_of", lambda snapshot: closed.append((snapshot, mlflow.get_tracking_uri()))
    )

    with pytest.raises(KeyError), abandoned_runs.mark_failed_on_error():
        fail()

    assert closed == [("store snapshot", uri)]
