"""Answers are kept apart from their scores, and marked where training rows hold them."""

import weakref

import pytest
from datasets import Dataset

from tuneline.config.evaluate import EvaluateStepConfig
from tuneline.data import schema
from tuneline.data.corpus import Corpus
from tuneline.evaluation import score
from tuneline.evaluation.items import Score
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
        candidate = score.Candidate("model", tiny_model, "a" * 64, lambda: (loads.append(1), load_model(tiny_model))[1])
        config = EvaluateStepConfig(max_new_tokens=4, **told)
        return score.score_all(candidate, tokenizer, held_out(), NO_EXAMS, config), score.noise(
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
        candidate = score.stored("model", tiny_model, "a" * 64, config)
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
    before, after = (score.Candidate(name, tiny_model, name * 64, memory.loading(tiny_model)) for name in "ab")
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

    monkeypatch.setattr(score.judge, "of", of)
    monkeypatch.setattr(score.judge, "name", lambda config: "judge")
    candidate = score.Candidate("model", tiny_model, "c" * 64, memory.loading(tiny_model))

    scores = score.score_all(
        candidate, tokenizer, held_out(), NO_EXAMS, EvaluateStepConfig(max_new_tokens=4, reward_model=tiny_model)
    )

    assert found == [0]
    assert [each.metrics["reward"] for each in scores] == [1.0] * 3


def test_items_in_the_training_rows_are_marked():
    scores = [Score("exam", item, "p", "r", "o") for item in ("x", "y")]
    found = Dataset.from_list([{"benchmark": "exam", "item": "y", "kind": "ngram", "example_id": "e"}])

    assert [each.contamination for each in score.flagged(scores, found)] == ["", "ngram"]
