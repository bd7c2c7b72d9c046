"""Tasks of lm-evaluation-harness give what the harness itself gives, item by item, and are asked once."""

import json

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from tests import harness_tasks
from tuneline.config.sections.lm_eval import LmEvalConfig
from tuneline.data.benchmarks import exam_files
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.errors import SourceError
from tuneline.evaluation import model_under_test, setting
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


def make(path, **told):
    return LmEvalConfig(**{"engine": "lm_eval", "name": "h", "task": str(path), "batch_size": 2, **told})


class Asked:
    """A candidate that counts how often its weights are loaded."""

    def __init__(self, folder):
        self.loads = 0
        self.candidate = model_under_test.EvaluatedModel("model", folder, "a" * 64, self._load)
        self._folder = folder

    def _load(self):
        self.loads += 1
        return load_model(self._folder)


def sit(tiny_model, tokenizer, config, found=None):
    asked = Asked(tiny_model)
    found = found or exam_files.locate_exams([config])
    return asked, lm_eval.run_task(asked.candidate, tokenizer, load_tokenizer(tokenizer), found, config)


def by_the_harness(tiny_model, tokenizer, path, metric, **told):
    """Return the metric of each document as `simple_evaluate` gives it, by filter."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=load_model(tiny_model).eval(), tokenizer=load_tokenizer(tokenizer), batch_size=3)
    manager = TaskManager(include_path=str(path.parent), include_defaults=False)
    made = lm_eval.simple_evaluate(model, tasks=[path.stem], task_manager=manager, bootstrap_iters=0, **told)
    found = {}
    for sample in sorted(made["samples"][path.stem], key=lambda each: each["doc_id"]):
        found.setdefault(sample["filter"], []).append(float(sample[metric]))
    return found


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat template"])
def test_choices_are_scored_as_the_harness_scores_them(tiny_model, tokenizer, tasks, monkeypatch, chat):
    config = make(tasks / "colours.yaml", metrics=["acc", "acc_norm"], apply_chat_template=chat)

    _, scores = sit(tiny_model, tokenizer, config)

    monkeypatch.chdir(tasks)  # the harness reads data files relative to the working directory
    for metric in ("acc", "acc_norm"):
        theirs = by_the_harness(
            tiny_model, tokenizer, tasks / "colours.yaml", metric, apply_chat_template=chat, fewshot_as_multiturn=chat
        )
        assert [each.metrics[metric] for each in scores] == theirs["none"]
    assert all("What colour is the fox 0? It is" in each.prompt for each in scores[:1])
    assert {each.output for each in scores} <= {"brown", "quick or brown", "red"}
    assert [each.reference for each in scores] == ["brown", "quick or brown", "red"] * 2


def test_texts_are_scored_by_each_filter_as_the_harness_scores_them(tiny_model, tokenizer, tasks, monkeypatch):
    config = make(tasks / "sums.yaml", metrics=["exact_match,whole", "exact_match,digits"])

    _, scores = sit(tiny_model, tokenizer, config)

    monkeypatch.chdir(tasks)
    theirs = by_the_harness(tiny_model, tokenizer, tasks / "sums.yaml", "exact_match")
    for name in ("whole", "digits"):
        assert [each.metrics[f"exact_match_{name}"] for each in scores] == theirs[name]
    assert [each.reference for each in scores] == [str(i + 1) for i in range(6)]
    assert all(each.output and each.seconds > 0 for each in scores)


def test_answers_are_kept_and_only_new_items_are_asked_with_the_same_shots(tiny_model, tokenizer, tasks, monkeypatch):
    few = make(tasks / "colours.yaml", metrics=["acc"], limit=5)
    all_of_them = make(tasks / "colours.yaml", metrics=["acc_norm"])

    first, before = sit(tiny_model, tokenizer, few)
    again, same = sit(tiny_model, tokenizer, few)
    more, after = sit(tiny_model, tokenizer, all_of_them)
    none, other_metric = sit(tiny_model, tokenizer, make(tasks / "colours.yaml", metrics=["acc"]))

    monkeypatch.setattr(setting, "evaluation_setting", lambda dtype: {"dtype": dtype, "torch": "another"})
    anew, _ = sit(tiny_model, tokenizer, few)

    assert [first.loads, again.loads, more.loads, none.loads, anew.loads] == [1, 0, 1, 0, 1]
    assert same == before
    assert [each.prompt for each in after[:5]] == [each.prompt for each in before]
    assert [each.item for each in after[:5]] == [each.item for each in before]
    assert [set(each.metrics) for each in (after[0], other_metric[0])] == [{"acc_norm"}, {"acc"}]


def test_a_group_is_asked_task_by_task_under_one_name(tiny_model, tokenizer, tasks):
    (tasks / "both.yaml").write_text("group: both\ntask: [colours, more]\n")
    (tasks / "more.yaml").write_text(harness_tasks.CHOICES.replace("task: colours", "task: more"))

    _, scores = sit(tiny_model, tokenizer, make(tasks / "both.yaml", metrics=["acc"]))

    assert {each.group for each in scores} == {"colours", "more"}
    assert len(by_metric(scores)["h_acc"]) == 12


def test_equal_documents_are_items_of_their_own(tiny_model, tokenizer, tasks):
    row = (tasks / "sums.jsonl").read_text().splitlines()[0]
    (tasks / "sums.jsonl").write_text(f"{row}\n{row}\n")

    _, scores = sit(tiny_model, tokenizer, make(tasks / "sums.yaml", metrics=["exact_match,whole"]))

    assert len({each.item for each in scores}) == 2


def test_another_function_file_or_row_is_another_benchmark(tasks):
    def located():
        return exam_files.locate_exams([make(tasks / "sums.yaml", metrics=["exact_match,whole"])]).content_hash()

    first = located()

    assert located() == first
    (tasks / "helpers.py").write_text(harness_tasks.HELPERS + "\n# another\n")
    second = located()
    (tasks / "sums.jsonl").write_text(json.dumps({"a": 1, "b": 1}) + "\n")
    assert len({first, second, located()}) == 3


def test_a_task_that_changed_since_it_was_resolved_is_refused(tiny_model, tokenizer, tasks):
    config = make(tasks / "colours.yaml", metrics=["acc"])
    found = exam_files.locate_exams([config])
    (tasks / "colours.jsonl").write_text((tasks / "colours.jsonl").read_text().replace("fox", "wolf"))

    with pytest.raises(SourceError, match="task colours changed since the run began"):
        sit(tiny_model, tokenizer, config, found)


def test_where_a_task_lies_is_no_part_of_what_it_is(tasks, tmp_path):
    other = harness_tasks.write(tmp_path / "elsewhere")
    found = [
        exam_files.locate_exams([make(folder / "sums.yaml", metrics=["exact_match,whole"])]).content_hash()
        for folder in (tasks, other)
    ]

    assert found[0] == found[1]
