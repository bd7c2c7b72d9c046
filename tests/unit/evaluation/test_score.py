"""Answers are kept apart from their scores, and marked where training rows hold them."""

import weakref
from importlib.metadata import version

import pytest
from datasets import Dataset

from tuneline.config.sections.evaluate import EvaluateStepConfig, ExamProtocol
from tuneline.data import schema
from tuneline.data.benchmarks.multiple_choice import Exam
from tuneline.data.corpus import Corpus
from tuneline.evaluation import model_under_test, score, setting
from tuneline.evaluation.metrics import metric_registry
from tuneline.evaluation.score_store import Score
from tuneline.evaluation.tasks import multiple_choice
from tuneline.identity import Located, Manifest, file_entries
from tuneline.model.load import load_model

pytestmark = pytest.mark.usefixtures("home")
NO_EXAMS = Manifest(kind="benchmarks", items=[])


@pytest.fixture
def tokenizer(tiny_model):
    """The tiny model's tokenizer as a manifest."""
    files = file_entries(tiny_model, [path for path in tiny_model.iterdir() if path.is_file()])
    return Manifest(kind="tokenizer", items=[Located(name="t", location=str(tiny_model), source="t", files=files)])


def held_out():
    said = [[schema.message("user", f"What is {i}?"), schema.message("assistant", f"It is {i}.")] for i in range(3)]
    return Dataset.from_list([schema.example("s", schema.content(each)) for each in said], features=schema.EXAMPLE)


def test_a_new_metric_asks_no_model_again_and_noise_is_drawn_on_request(tiny_model, tokenizer):
    loads = []

    def scored(**told):
        candidate = model_under_test.EvaluatedModel(
            "model", tiny_model, "a" * 64, lambda: (loads.append(1), load_model(tiny_model))[1]
        )
        config = EvaluateStepConfig(max_new_tokens=4, **told)
        return score.score_all(candidate, tokenizer, held_out(), NO_EXAMS, config), score.noise_band(
            candidate, tokenizer, held_out(), config
        )

    before, _ = scored(metrics=["rougeL"])
    after, quiet = scored(metrics=["chrf", "rougeL"])

    assert loads == [1]
    assert quiet == {}
    assert [each.output for each in before] == [each.output for each in after]
    assert set(after[0].metrics) == {"chrf", "rougeL"}
    assert all(each.seconds > 0 for each in after)
    assert [len(means) for means in scored(noise={"num_seeds": 2})[1].values()] == [2, 2, 2]


def test_another_type_of_weights_is_another_protocol(tiny_model, tokenizer):
    held = []

    def scored(dtype):
        config = EvaluateStepConfig(max_new_tokens=4, dtype=dtype)
        candidate = model_under_test.stored_model("model", tiny_model, "a" * 64, config)
        load = candidate._load
        candidate._load = lambda: (held.append(candidate.dtype), load())[1]
        score.score_all(candidate, tokenizer, held_out(), NO_EXAMS, config)
        return candidate

    scored("float32"), scored("auto"), scored("bfloat16")

    assert held == ["float32", "bfloat16"]
    assert {str(each.model.dtype) for each in (scored("float32"), scored("bfloat16"))} == {
        "torch.float32",
        "torch.bfloat16",
    }


def texts():
    rows = [schema.example("s", schema.content(text=f"A text about number {i}.")) for i in range(3)]
    return Dataset.from_list(rows, features=schema.EXAMPLE)


@pytest.mark.parametrize("rows", [held_out, texts])
@pytest.mark.parametrize("changed", ["torch", "transformers", "peft", "tokenizers", "device"])
def test_under_another_library_or_device_models_are_asked_again(tiny_model, tokenizer, rows, changed, monkeypatch):
    loads = []

    def scored():
        candidate = model_under_test.EvaluatedModel(
            "model", tiny_model, "a" * 64, lambda: (loads.append(1), load_model(tiny_model))[1]
        )
        config = EvaluateStepConfig(max_new_tokens=2, metrics=["rougeL"])
        return score.score_all(candidate, tokenizer, rows(), NO_EXAMS, config)

    scored(), scored()
    assert loads == [1]
    real = setting.evaluation_setting
    monkeypatch.setattr(setting, "evaluation_setting", lambda dtype: real(dtype) | {changed: "another"})
    scored(), scored()

    assert loads == [1, 1]


def test_another_release_of_a_metric_scores_answers_again_and_asks_no_model(tiny_model, tokenizer, monkeypatch):
    loads, computed = [], []
    real = metric_registry.columns
    monkeypatch.setattr(metric_registry, "columns", lambda *told: (computed.append(1), real(*told))[1])

    def scored():
        candidate = model_under_test.EvaluatedModel(
            "model", tiny_model, "a" * 64, lambda: (loads.append(1), load_model(tiny_model))[1]
        )
        score.score_all(candidate, tokenizer, held_out(), NO_EXAMS, EvaluateStepConfig(max_new_tokens=2))

    scored(), scored()
    for package in ("jieba", "rouge_score", "sacrebleu", "nltk"):
        monkeypatch.setattr(setting, "_version", lambda name, package=package: f"9 of {package}")
        monkeypatch.setattr(setting, "evaluation_setting", lambda dtype: {"dtype": dtype})
        scored(), scored()

    assert len(computed) == 5
    assert len(loads) == 2, "once for each of the two settings"


def test_an_exam_is_taken_again_under_another_library(tiny_model, tokenizer, monkeypatch):
    protocols = []
    monkeypatch.setattr(multiple_choice.multiple_choice, "read_exam", lambda _: Exam("e", {}, {}))
    monkeypatch.setattr(
        multiple_choice, "score_with_cache", lambda model, protocol, items, answer: protocols.append(protocol) or []
    )
    found = Manifest(kind="benchmarks", items=[tokenizer.only().model_copy(update={"name": "e"})])
    real = setting.evaluation_setting
    for release in ("1", "1", "2"):
        monkeypatch.setattr(
            setting, "evaluation_setting", lambda dtype, release=release: real(dtype) | {"transformers": release}
        )
        candidate = model_under_test.EvaluatedModel("model", tiny_model, "a" * 64)
        multiple_choice.run_task(candidate, tokenizer, None, found, ExamProtocol(name="e", num_shots=0))

    assert [protocols.index(each) for each in protocols] == [0, 0, 2]


def test_a_report_says_what_its_scores_were_made_with():
    told = setting.describe("float32")

    assert (told["dtype"], told["device"]) == ("float32", "cpu")
    assert f"transformers {version('transformers')}, " in told["libraries"]
    assert f"rouge_score {version('rouge_score')}" in told["libraries"]
    assert "absent" not in told["libraries"]


class Memory:
    """Which models are alive."""

    def __init__(self):
        self.models, self.at_load = [], []

    def alive(self):
        return sum(model() is not None for model in self.models)

    def loading(self, folder):
        def load():
            self.at_load.append(self.alive())
            model = load_model(folder)
            self.models.append(weakref.ref(model))
            return model

        return load


def test_the_base_is_let_go_before_the_candidate_is_loaded(tiny_model, tokenizer):
    memory = Memory()
    before, after = (
        model_under_test.EvaluatedModel(name, tiny_model, name * 64, memory.loading(tiny_model)) for name in "ab"
    )
    config = EvaluateStepConfig(max_new_tokens=4, noise={"num_seeds": 2})
    mixture = Corpus({"validation": held_out(), "contamination": Dataset.from_list([])})

    report = score.report(before, after, tokenizer, mixture, NO_EXAMS, config)

    assert memory.at_load == [0, 0]
    assert memory.alive() == 0
    assert set(report.noise) == {"base", "model"}


def test_the_candidate_is_let_go_before_its_answers_are_judged_by_a_model(tiny_model, tokenizer, monkeypatch):
    memory, found = Memory(), []

    def of(config, tokenizer):
        found.append(memory.alive())
        return lambda prompts, answers, references: [1.0] * len(answers)

    monkeypatch.setattr(score.reward, "reward_scorer", of)
    monkeypatch.setattr(score.reward, "reward_id", lambda config: "judge")
    candidate = model_under_test.EvaluatedModel("model", tiny_model, "c" * 64, memory.loading(tiny_model))

    scores = score.score_all(
        candidate, tokenizer, held_out(), NO_EXAMS, EvaluateStepConfig(max_new_tokens=4, reward_model=tiny_model)
    )

    assert found == [0]
    assert [each.metrics["reward"] for each in scores] == [1.0] * 3


def test_items_in_the_training_rows_are_marked():
    scores = [Score("exam", item, "p", "r", "o") for item in ("x", "y")]
    found = Dataset.from_list([{"benchmark": "exam", "item": "y", "kind": "ngram", "example_id": "e"}])

    assert [each.contamination for each in score.mark_contaminated(scores, found)] == ["", "ngram"]
