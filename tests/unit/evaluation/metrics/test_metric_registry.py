"""Metrics of generated answers, compared with ROUGE-1.5.5, sacrebleu and LlamaFactory's scores."""

import gzip
import json
import re
import socket
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tests import tiny
from tuneline.config import existence
from tuneline.config import load as loading
from tuneline.config.sections.evaluate import GENERATION_METRICS, EvaluateConfig, EvaluateStepConfig
from tuneline.errors import RecipeError, SourceError
from tuneline.evaluation.metrics import llamafactory, metric_registry, overlap, text_tokenizer
from tuneline.evaluation.metrics.rouge import SUMMARY, Rouge

PAIRS = [("the cat sat on the mat", "a cat sat there"), ("今天天气很好", "今天天气不好"), ("", "nothing"), ("x", "")]
LINES = st.lists(st.sampled_from(["the cat sat", "on the mat", "", "a dog", "the dog sat on it"]), max_size=4)


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().split("\n")[:-1]


@pytest.mark.parametrize(("system", "published"), [("lead", (16.30, 1.60, 11.95)), ("convs2s", (31.27, 11.07, 25.23))])
def test_a_published_output_with_stemming_has_the_published_scores(test_data, system, published):
    folder = test_data / "rouge_oracle"
    references, predictions = (
        lines(folder / name) for name in ("gold-test-sentences.txt.gz", f"{system}-test-output.txt.gz")
    )

    scores = Rouge(keep_in_memory=True).compute(predictions=predictions, references=references, use_stemmer=True)

    assert [100 * value for value in scores.values()] == pytest.approx(published, rel=0, abs=0.4)


@settings(deadline=None, max_examples=50)
@given(reference=LINES, prediction=LINES)
def test_rouge_lsum_of_several_lines_equals_rouge_score(reference, prediction):
    pair = "\n".join(reference), "\n".join(prediction)
    oracle = RougeScorer([SUMMARY]).score(*pair)[SUMMARY].fmeasure

    scores = Rouge(keep_in_memory=True).compute(predictions=[pair[1]], references=[pair[0]], kinds=[SUMMARY])

    assert scores == {SUMMARY: pytest.approx(oracle, abs=1e-12)}


def test_scores_of_llamafactory_are_reproduced_to_four_digits(test_data):
    rows = [json.loads(line) for line in (test_data / "llamafactory_compat" / "oracle.jsonl").open(encoding="utf-8")]
    names = {**llamafactory.NAMES, "bleu-4": llamafactory.BLEU}

    columns = llamafactory.LlamaFactoryCompat(keep_in_memory=True).compute(
        predictions=[row["prediction"] for row in rows],
        references=[row["reference"] for row in rows],
        aggregate=False,
    )

    assert len(rows) == 40
    for name, column in names.items():
        assert [round(100 * value, 4) for value in columns[column]] == [row[name] for row in rows]


def test_chinese_is_compared_by_characters():
    scores = Rouge(keep_in_memory=True).compute(
        predictions=["今天天气不好"], references=["今天天气很好"], cut="characters"
    )

    assert scores["rouge1"] == pytest.approx(5 / 6)
    assert text_tokenizer.CharacterTokenizer().tokenize("今天 GPT-4 はい한 foo_bar") == [
        *"今天",
        "gpt",
        "4",
        *"はい한",
        "foo",
        "bar",
    ]


@pytest.mark.parametrize(
    ("chosen", "references", "cut", "tokenizer"),
    [
        ("auto", ["An answer.", "é"], "words", "13a"),
        ("auto", ["这是一个答案 by GPT", "好"], "characters", "zh"),
        ("auto", ["これはこたえです"], "characters", "char"),
        ("words", ["这是一个答案"], "words", "13a"),
        ("characters", ["An answer."], "characters", "zh"),
        ("auto", [""], "words", "13a"),
    ],
)
def test_the_tokenization_depends_on_the_references_or_the_recipe(chosen, references, cut, tokenizer):
    assert text_tokenizer.resolve_cut(chosen, references) == cut
    assert text_tokenizer.bleu_tokenizer(cut, references) == tokenizer


@pytest.mark.parametrize(("tokenize", "pair"), [("13a", PAIRS[0]), ("zh", PAIRS[1])])
def test_bleu_and_chrf_equal_sacrebleu(tokenize, pair):
    reference, prediction = pair
    inputs = {"predictions": [prediction], "references": [reference]}

    bleu = overlap.Bleu(keep_in_memory=True).compute(**inputs, tokenize=tokenize)["bleu"]
    chrf = overlap.ChrF(keep_in_memory=True).compute(**inputs)["chrf"]

    expected = BLEU(tokenize=tokenize, effective_order=True).sentence_score(prediction, [reference]).score
    assert 0 < bleu == pytest.approx(expected / 100)
    assert 0 < chrf == pytest.approx(CHRF().sentence_score(prediction, [reference]).score / 100)
    assert f"tok:{tokenize}" in overlap.corpus_score("bleu", [prediction], [reference], tokenize)[1]


def test_exact_match_is_strict_and_token_f1_is_not():
    inputs = {"predictions": [" -1", "1", "The cat, sat!"], "references": ["-1", "-1", "a cat sat"], "aggregate": False}

    assert overlap.ExactMatch(keep_in_memory=True).compute(**inputs) == {"exact_match": [1.0, 0.0, 0.0]}
    assert overlap.TokenF1(keep_in_memory=True).compute(**inputs) == {"token_f1": [1.0, 1.0, 1.0]}


def make_config(**options):
    return EvaluateStepConfig(**options)


def columns(config, outputs, references):
    return metric_registry.columns(config, "words", "13a", ["p"] * len(outputs), outputs, references)


def test_an_empty_answer_scores_zero_in_every_metric(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("opened a socket"))

    scores = columns(make_config(metrics=list(GENERATION_METRICS)), ["", "right"], ["wanted", "right"])

    assert scores.keys() == {name for names in GENERATION_METRICS.values() for name in names}
    assert {name: column[0] for name, column in scores.items()} == dict.fromkeys(scores, 0.0)
    assert all(column[1] > 0.4 for name, column in scores.items() if name not in ("rouge2", "llamafactory_rouge2"))


def test_the_columns_are_in_the_order_of_the_recipe():
    config = make_config(metrics=["rougeL", "bleu", "tests.rewards:vowels"])

    scores = columns(config, ["aa"], ["aa"])

    assert list(scores) == config.columns() == ["rougeL", "bleu", "vowels"]
    assert scores["vowels"] == [10.0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["rogue1"], "unknown metric 'rogue1'. Did you mean 'rouge1'?"),
        (["chrf", "chrf"], "two metrics have the name 'chrf'"),
        (["a:bleu", "bleu"], "two metrics have the name 'bleu'"),
        ([], "at least 1 item"),
    ],
)
def test_an_unknown_or_duplicate_metric_is_refused(names, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaluateConfig(metrics=names)


def load(tmp_path, **evaluate):
    recipe = tiny.recipe(evaluate=evaluate)
    recipe["registry"]["gate"] = {"metric": evaluate.pop("gate", "rougeL")}
    return loading.load(tiny.write_config(tmp_path / "run.yaml", recipe)).recipe


def test_an_unknown_metric_is_reported_with_its_recipe_key(tmp_path):
    with pytest.raises(RecipeError, match=r"evaluate.*unknown metric 'rougel'. Did you mean 'rougeL'"):
        load(tmp_path, metrics=["rougel"])


def test_a_gate_can_use_measured_metrics_only(tmp_path):
    for metric in ("chrf", "exam_accuracy"):
        assert load(tmp_path, metrics=["chrf"], gate=metric).registry.gate.metric == metric
    with pytest.raises(RecipeError, match="does not measure rougeL"):
        load(tmp_path, metrics=["chrf"], gate="rougeL")


def test_a_user_function_is_identified_by_the_hash_of_its_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = tmp_path / "own_metric.py"
    source.write_text("def length(prompts, completions, references):\n    return [len(c) for c in completions]\n")
    before = load(tmp_path, metrics=["rougeL", "own_metric:length"])
    hashes = before.for_evaluate().metric_hashes
    assert columns(before.for_evaluate(), ["abc"], ["x"])["length"] == [3.0]

    source.write_text("def length(prompts, completions, references):\n    return [9 for c in completions]\n")

    after = before.for_evaluate()
    assert hashes.keys() == after.metric_hashes.keys() == {"own_metric:length"}
    assert hashes != after.metric_hashes
    assert metric_registry.protocol(after, "words", []) != metric_registry.protocol(
        after.model_copy(update={"metric_hashes": hashes}), "words", []
    )
    assert columns(after, ["abc"], ["x"])["length"] == [9.0]


def test_a_function_that_returns_too_few_numbers_is_reported_with_its_key():
    config = make_config(metrics=["tests.rewards:too_few"])

    with pytest.raises(RecipeError, match="evaluate.metrics 'tests.rewards:too_few' must return a finite number"):
        columns(config, ["a", "b"], ["a", "b"])


def test_a_missing_module_is_reported_by_the_plan(tmp_path):
    recipe = load(tmp_path, metrics=["rougeL", "nowhere:f"])

    assert any(
        "evaluate.metrics 'nowhere:f': module 'nowhere' not found" in line for line in existence.find_missing(recipe)
    )


def test_a_missing_library_is_reported_by_the_plan(monkeypatch):
    monkeypatch.setattr(existence, "find_spec", lambda name: None)

    with pytest.raises(SourceError, match="llamafactory_compat requires jieba and rouge_chinese and nltk"):
        existence.check_metric("llamafactory_compat")
