"""Stored answers are scored again for new metrics; contaminated items are marked."""

import weakref
from importlib.metadata import version

import pytest
from datasets import Dataset

from tuneline.config.sections.evaluate import EvaluateStepConfig, ExamProtocol
from tuneline.data import schema
from tuneline.data.benchmarks.multiple_choice import Exam
from tuneline.data.corpus import Corpus
from tuneline.evaluation import environment, model_under_test, score
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
    chats = [[schema.message("user", f"What is {i}?"), schema.message("assistant", f"It is {i}.")] for i in range(3)]
    return Dataset.from_list([schema.example("s", schema.content(chat)) for chat in chats], features=schema.EXAMPLE)


def test_a_new_metric_reuses_answers_and_noise_is_optional(tiny_model, tokenizer):
    loads = []

    def score_model(**options):
        candidate = model_under_test.EvaluatedModel(
            "model", tiny_model, "a" * 64, lambda: (loads.append(1), load_model(tiny_model))[1]
        )
        config = EvaluateStepConfig(max_new_tokens=4, **options)
        return score.score_all(candidate, tokenizer, held_out(), NO_EXAMS, config), score.noise_band(
            candidate, tokenizer, held_out(), config
        )

    before, _ = score_model(metrics=["rougeL"])
    after, no_noise = score_model(metrics=["chrf", "rougeL"])

    assert loads == [1]
    assert no_noise == {}
    assert [item_score.output for item_score in before] == [item_score.output for item_score in after]
    assert set(after[0].metrics) == {"chrf", "rougeL"}
    assert all(item_score.seconds > 0 for item_score in after)
    assert [len(means) for means in score_model(noise={"num_seeds": 2})[1].values()] == [2, 2, 2]


def test_another_dtype_is_another_protocol(tiny_model, tokenizer):
    dtypes = []

    def score_model(dtype):
        config = EvaluateStepConfig(max_new_tokens=4, dtype=dtype)
        candidate = model_under_test.stored_model("model", tiny_model, "a" * 64, config)
        load = candidate._load
        candidate._load = lambda: (dtypes.append(candidate.dtype), load())[1]
        score.score_all(candidate, tokenizer, held_out(), NO_EXAMS, config)
        return candidate

    score_model("float32"), score_model("auto"), score_model("bfloat16")

    assert dtypes == ["float32", "bfloat16"]
    assert {str(evaluated.model.dtype) for evaluated in (score_model("float32"), score_model("bfloat16"))} == {
        "torch.float32",
        "torch.bfloat16",
    }


def texts():
    rows = [schema.example("s", schema.content(text=f"A text about number {i}.")) for i in range(3)]
    return Dataset.from_list(rows, features=schema.EXAMPLE)


@pytest.mark.parametrize("rows", [held_out, texts])
@pytest.mark.parametrize("changed", ["torch", "transformers", "peft", "tokenizers", "device"])
def test_another_library_or_device_generates_answers_again(tiny_model, tokenizer, rows, changed, monkeypatch):
    loads = []

    def score_model():
        candidate = model_under_test.EvaluatedModel(
            "model", tiny_model, "a" * 64, lambda: (loads.append(1), load_model(tiny_model))[1]
        )
        config = EvaluateStepConfig(max_new_tokens=2, metrics=["rougeL"])
        return score.score_all(candidate, tokenizer, rows(), NO_EXAMS, config)

    score_model(), score_model()
    assert loads == [1]
    real = environment.evaluation_setting
    monkeypatch.setattr(environment, "evaluation_setting", lambda dtype: real(dtype) | {changed: "another"})
    score_model(), score_model()

    assert loads == [1, 1]


def test_another_release_of_a_metric_scores_stored_answers_again(tiny_model, tokenizer, monkeypatch):
    loads, computed = [], []
    real = metric_registry.columns
    monkeypatch.setattr(metric_registry, "columns", lambda *arguments: (computed.append(1), real(*arguments))[1])

    def score_model():
        candidate = model_under_test.EvaluatedModel(
            "model", tiny_model, "a" * 64, lambda: (loads.append(1), load_model(tiny_model))[1]
        )
        score.score_all(candidate, tokenizer, held_out(), NO_EXAMS, EvaluateStepConfig(max_new_tokens=2))

    score_model(), score_model()
    for package in ("jieba", "rouge_score", "sacrebleu", "nltk"):
        monkeypatch.setattr(environment, "_version", lambda name, package=package: f"9 of {package}")
        monkeypatch.setattr(environment, "evaluation_setting", lambda dtype: {"dtype": dtype})
        score_model(), score_model()

    assert len(computed) == 5
    assert len(loads) == 2, "once per setting"


def test_another_library_scores_an_exam_again(tiny_model, tokenizer, monkeypatch):
    protocols = []
    monkeypatch.setattr(multiple_choice.multiple_choice, "read_exam", lambda _: Exam("e", {}, {}))
    monkeypatch.setattr(
        multiple_choice, "score_with_cache", lambda model, protocol, items, answer: protocols.append(protocol) or []
    )
    exams = Manifest(kind="benchmarks", items=[tokenizer.only().model_copy(update={"name": "e"})])
    real = environment.evaluation_setting
    for release in ("1", "1", "2"):
        monkeypatch.setattr(
            environment, "evaluation_setting", lambda dtype, release=release: real(dtype) | {"transformers": release}
        )
        candidate = model_under_test.EvaluatedModel("model", tiny_model, "a" * 64)
        multiple_choice.run_task(candidate, tokenizer, None, exams, ExamProtocol(name="e", num_shots=0))

    assert [protocols.index(protocol_of_run) for protocol_of_run in protocols] == [0, 0, 2]


def test_a_report_names_the_libraries_of_its_scores():
    description = environment.describe("float32")

    assert (description["dtype"], description["device"]) == ("float32", "cpu")
    assert f"transformers {version('transformers')}, " in description["libraries"]
    assert f"rouge_score {version('rouge_score')}" in description["libraries"]
    assert "absent" not in description["libraries"]


class Memory:
    """Counts the models in memory."""

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


def test_the_base_model_is_freed_before_the_candidate_is_loaded(tiny_model, tokenizer):
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


def test_the_candidate_is_freed_before_a_reward_model_scores_its_answers(tiny_model, tokenizer, monkeypatch):
    memory, num_alive = Memory(), []

    def fake_scorer(config, tokenizer):
        num_alive.append(memory.alive())
        return lambda prompts, answers, references: [1.0] * len(answers)

    monkeypatch.setattr(score.reward, "reward_scorer", fake_scorer)
    monkeypatch.setattr(score.reward, "reward_id", lambda config: "judge")
    candidate = model_under_test.EvaluatedModel("model", tiny_model, "c" * 64, memory.loading(tiny_model))

    scores = score.score_all(
        candidate, tokenizer, held_out(), NO_EXAMS, EvaluateStepConfig(max_new_tokens=4, reward_model=tiny_model)
    )

    assert num_alive == [0]
    assert [item_score.metrics["reward"] for item_score in scores] == [1.0] * 3


def test_contaminated_items_are_marked():
    scores = [Score("exam", item, "p", "r", "o") for item in ("x", "y")]
    contamination = Dataset.from_list([{"benchmark": "exam", "item": "y", "kind": "ngram", "example_id": "e"}])

    assert [item_score.contamination for item_score in score.mark_contaminated(scores, contamination)] == ["", "ngram"]
