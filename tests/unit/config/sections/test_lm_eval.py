"""lm-evaluation-harness tasks in a recipe are validated against the task file before any data are downloaded."""

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from tests import harness_tasks, tiny
from tuneline.config import existence, load
from tuneline.config.sections import lm_eval
from tuneline.errors import NotFoundError, RecipeError, SourceError

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def check(tmp_path):
    harness_tasks.write(tmp_path / "tasks")

    def checked(task, *metrics, **options):
        path = str(tmp_path / "tasks" / task) if task.endswith(".yaml") else task
        lm_eval.check(
            lm_eval.LmEvalConfig(engine="lm_eval", name="h", task=path, metrics=metrics or ["acc"], **options)
        )

    return checked


def read(folder, exam, metric="rougeL"):
    registry = {"model_name": "tiny", "gate": {"metric": metric}}
    return load.load(tiny.write_config(folder / "run.yaml", tiny.recipe(exams=[exam], registry=registry)))


def test_tasks_groups_tags_and_files_are_known(check, tmp_path):
    check("hellaswag", "acc_norm")
    check("mmlu", "acc")
    check("ai2_arc", "acc", "acc_norm")
    check("gsm8k", "exact_match,strict-match")
    check("colours.yaml", "acc")
    check("colours", include_path=tmp_path / "tasks")


@pytest.mark.parametrize(
    ("task", "metric", "error", "message"),
    [
        ("helaswag", "acc", NotFoundError, "has no task 'helaswag'. Did you mean 'hellaswag'"),
        ("hellaswag", "acc_nrom", RecipeError, "has no metric 'acc_nrom'. Did you mean 'acc_norm'?"),
        ("gsm8k", "exact_match", RecipeError, "Set exact_match,strict-match or exact_match,flexible-extract."),
        ("sums.yaml", "exact_match,hole", RecipeError, "has no filter 'hole'. Set exact_match,whole or"),
        (
            "lambada_openai",
            "perplexity",
            RecipeError,
            "is not supported, because it is not a mean over items. Set acc.",
        ),
        (
            "colours.yaml",
            "mcc",
            RecipeError,
            "is not supported, because it is not a mean over items. Set acc or acc_norm.",
        ),
        ("none.yaml", "acc", SourceError, "exams.h.task: file not found:"),
        ("both.yaml", "acc", RecipeError, "task sums has no metric 'acc'"),
    ],
)
def test_a_missing_task_or_metric_is_reported_with_the_closest_match(check, task, metric, error, message):
    with pytest.raises(error) as caught:
        check(task, metric)

    assert message in str(caught.value)


def test_a_metric_for_which_lower_is_better_is_refused(check, tmp_path):
    path = tmp_path / "tasks" / "colours.yaml"
    path.write_text(
        path.read_text().replace(
            "metric: acc_norm, aggregation: mean, higher_is_better: true",
            "metric: acc_norm, aggregation: mean, higher_is_better: false",
        )
    )

    with pytest.raises(
        RecipeError, match=r"acc_norm of task colours is not supported, because lower is better.*Set acc\."
    ):
        check("colours.yaml", "acc_norm")


def test_an_invalid_task_file_is_refused_with_its_reason(check, tmp_path):
    (tmp_path / "tasks" / "odd.yaml").write_text("task: [\n")

    with pytest.raises(RecipeError, match=r"odd\.yaml is not a valid task file: .*Correct it\."):
        check("odd.yaml")


def test_a_missing_harness_is_reported_with_the_package_to_install(check, monkeypatch):
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: None)

    with pytest.raises(
        SourceError, match=r"lm_eval is not installed. Install tuneline\[lm-eval\], or remove the entry"
    ):
        check("hellaswag")


def test_a_missing_task_is_reported_before_the_run(tmp_path):
    config = read(tmp_path, {"engine": "lm_eval", "name": "h", "task": "helaswag", "metrics": ["acc"]})

    assert any("Did you mean 'hellaswag'" in line for line in existence.find_missing(config.recipe))


def test_paths_are_relative_to_the_recipe_and_names_are_not_paths(tmp_path):
    own = {"engine": "lm_eval", "name": "h", "task": "tasks/colours.yaml", "include_path": "more", "metrics": ["acc"]}

    (exam,) = read(tmp_path, own).recipe.exams
    (named,) = read(tmp_path, {**own, "task": "hellaswag"}).recipe.exams

    assert (exam.task, str(exam.include_path)) == (str(tmp_path / "tasks/colours.yaml"), str(tmp_path / "more"))
    assert named.task == "hellaswag"


def test_a_gate_can_use_a_metric_of_a_task(tmp_path):
    exam = {"engine": "lm_eval", "name": "gsm", "task": "gsm8k", "metrics": ["exact_match,strict-match"]}

    assert "gsm_exact_match_strict-match" in read(tmp_path, exam, "gsm_exact_match_strict-match").recipe.metric_names()
    with pytest.raises(RecipeError, match="does not measure gsm_acc "):
        read(tmp_path, exam, "gsm_acc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "lm-eval"}, "exams.0.engine: unknown engine 'lm-eval'. Did you mean 'lm_eval'?"),
        (
            {"shots": 5},
            "exams.0.shots: unknown key. Known: apply_chat_template, batch_size, engine, fewshot_random_seed",
        ),
        ({"num_fewshots": 5}, "exams.0.num_fewshots: unknown key. Did you mean 'num_fewshot'?"),
        ({"metrics": ["acc", "acc"]}, "exams.h.metrics: a metric is listed twice"),
    ],
)
def test_a_wrong_entry_is_reported_with_its_key(tmp_path, changes, message):
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, {"engine": "lm_eval", "name": "h", "task": "hellaswag", "metrics": ["acc"], **changes})

    assert message in str(caught.value)
