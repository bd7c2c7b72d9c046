"""Tasks of lm-evaluation-harness have the per-item scores of the harness, and are scored once."""

import json

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from tests import harness_tasks
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.data.benchmarks import exam_files
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.errors import SourceError
from tuneline.evaluation import environment, model_under_test
from tuneline.evaluation.tasks import lm_eval
from tuneline.identity import Located, Manifest, file_entries
from tuneline.metric_tables import by_metric
from tuneline.model.load import load_model

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def tasks(tmp_path):
    return harness_tasks.write(tmp_path / "tasks")


@pytest.fixture
def tokenizer(tiny_model):
    files = file_entries(tiny_model, [path for path in tiny_model.iterdir() if path.is_file()])
    return Manifest(kind="tokenizer", items=[Located(name="t", location=str(tiny_model), source="t", files=files)])


def make_config(path, **options):
    return LmEvalConfig(**{"engine": "lm_eval", "name": "h", "task": str(path), "batch_size": 2, **options})


class CountingModel:
    """A candidate that counts how often its weights are loaded."""

    def __init__(self, folder):
        self.loads = 0
        self.candidate = model_under_test.EvaluatedModel("model", folder, "a" * 64, self._load)
        self._folder = folder

    def _load(self):
        self.loads += 1
        return load_model(self._folder)


def run_task(tiny_model, tokenizer, config, exams=None):
    model = CountingModel(tiny_model)
    exams = exams or exam_files.locate_exams([config])
    return model, lm_eval.run_task(model.candidate, tokenizer, load_tokenizer(tokenizer), exams, config)


def harness_scores(tiny_model, tokenizer, path, metric, **options):
    """Return the metric of each document as `simple_evaluate` gives it, by filter."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=load_model(tiny_model).eval(), tokenizer=load_tokenizer(tokenizer), batch_size=3)
    manager = TaskManager(include_path=str(path.parent), include_defaults=False)
    results = lm_eval.simple_evaluate(model, tasks=[path.stem], task_manager=manager, bootstrap_iters=0, **options)
    scores = {}
    for sample in sorted(results["samples"][path.stem], key=lambda each: each["doc_id"]):
        scores.setdefault(sample["filter"], []).append(float(sample[metric]))
    return scores


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat template"])
def test_scores_of_choices_equal_those_of_the_harness(tiny_model, tokenizer, tasks, monkeypatch, chat):
    config = make_config(tasks / "colours.yaml", metrics=["acc", "acc_norm"], apply_chat_template=chat)

    _, scores = run_task(tiny_model, tokenizer, config)

    monkeypatch.chdir(tasks)  # the harness reads data files relative to the working directory
    for metric in ("acc", "acc_norm"):
        expected = harness_scores(
            tiny_model, tokenizer, tasks / "colours.yaml", metric, apply_chat_template=chat, fewshot_as_multiturn=chat
        )
        assert [score.metrics[metric] for score in scores] == expected["none"]
    assert all("What colour is the fox 0? It is" in score.prompt for score in scores[:1])
    assert {score.output for score in scores} <= {"brown", "quick or brown", "red"}
    assert [score.reference for score in scores] == ["brown", "quick or brown", "red"] * 2


def test_scores_of_texts_equal_those_of_the_harness_for_each_filter(tiny_model, tokenizer, tasks, monkeypatch):
    config = make_config(tasks / "sums.yaml", metrics=["exact_match,whole", "exact_match,digits"])

    _, scores = run_task(tiny_model, tokenizer, config)

    monkeypatch.chdir(tasks)
    expected = harness_scores(tiny_model, tokenizer, tasks / "sums.yaml", "exact_match")
    for name in ("whole", "digits"):
        assert [score.metrics[f"exact_match_{name}"] for score in scores] == expected[name]
    assert [score.reference for score in scores] == [str(i + 1) for i in range(6)]
    assert all(score.output and score.seconds > 0 for score in scores)


def test_stored_answers_are_reused_and_only_new_items_are_generated(tiny_model, tokenizer, tasks, monkeypatch):
    few = make_config(tasks / "colours.yaml", metrics=["acc"], limit=5)
    full = make_config(tasks / "colours.yaml", metrics=["acc_norm"])

    first, before = run_task(tiny_model, tokenizer, few)
    repeated, repeated_scores = run_task(tiny_model, tokenizer, few)
    extended, after = run_task(tiny_model, tokenizer, full)
    other, other_metric = run_task(tiny_model, tokenizer, make_config(tasks / "colours.yaml", metrics=["acc"]))

    monkeypatch.setattr(environment, "evaluation_setting", lambda dtype: {"dtype": dtype, "torch": "another"})
    other_library, _ = run_task(tiny_model, tokenizer, few)

    assert [first.loads, repeated.loads, extended.loads, other.loads, other_library.loads] == [1, 0, 1, 0, 1]
    assert repeated_scores == before
    assert [score.prompt for score in after[:5]] == [score.prompt for score in before]
    assert [score.item for score in after[:5]] == [score.item for score in before]
    assert [set(score.metrics) for score in (after[0], other_metric[0])] == [{"acc_norm"}, {"acc"}]


def test_the_tasks_of_a_group_are_scored_under_one_name(tiny_model, tokenizer, tasks):
    (tasks / "both.yaml").write_text("group: both\ntask: [colours, more]\n")
    (tasks / "more.yaml").write_text(harness_tasks.CHOICES.replace("task: colours", "task: more"))

    _, scores = run_task(tiny_model, tokenizer, make_config(tasks / "both.yaml", metrics=["acc"]))

    assert {score.group for score in scores} == {"colours", "more"}
    assert len(by_metric(scores)["h_acc"]) == 12


def test_equal_documents_are_separate_items(tiny_model, tokenizer, tasks):
    row = (tasks / "sums.jsonl").read_text().splitlines()[0]
    (tasks / "sums.jsonl").write_text(f"{row}\n{row}\n")

    _, scores = run_task(tiny_model, tokenizer, make_config(tasks / "sums.yaml", metrics=["exact_match,whole"]))

    assert len({score.item for score in scores}) == 2


def test_a_changed_function_file_or_row_changes_the_content_hash(tasks):
    def content_hash():
        return exam_files.locate_exams([make_config(tasks / "sums.yaml", metrics=["exact_match,whole"])]).content_hash()

    first = content_hash()

    assert content_hash() == first
    (tasks / "helpers.py").write_text(harness_tasks.HELPERS + "\n# another\n")
    second = content_hash()
    (tasks / "sums.jsonl").write_text(json.dumps({"a": 1, "b": 1}) + "\n")
    assert len({first, second, content_hash()}) == 3


def test_a_task_that_changed_since_it_was_resolved_is_refused(tiny_model, tokenizer, tasks):
    config = make_config(tasks / "colours.yaml", metrics=["acc"])
    exams = exam_files.locate_exams([config])
    (tasks / "colours.jsonl").write_text((tasks / "colours.jsonl").read_text().replace("fox", "wolf"))

    with pytest.raises(SourceError, match="task colours changed since the run began"):
        run_task(tiny_model, tokenizer, config, exams)


def test_the_content_hash_does_not_depend_on_the_location(tasks, tmp_path):
    other = harness_tasks.write(tmp_path / "elsewhere")
    hashes = [
        exam_files.locate_exams([make_config(folder / "sums.yaml", metrics=["exact_match,whole"])]).content_hash()
        for folder in (tasks, other)
    ]

    assert hashes[0] == hashes[1]
