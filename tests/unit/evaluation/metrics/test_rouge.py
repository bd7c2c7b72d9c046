"""ROUGE, compared with Google's `rouge_score` and a published system output."""

import gzip
import socket
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from tuneline.evaluation.metrics.rouge import KINDS, Rouge, longest_common_subsequence, rouge

ORACLE = RougeScorer(list(KINDS), use_stemmer=False)
WORDS = st.lists(st.sampled_from(["a", "b", "The", "the", "it's", "U.S.", "9", "--", "é", "\n"]), max_size=12)
TEXTS = st.one_of(WORDS.map(" ".join), st.text(max_size=20))
PAIRS = [("the cat sat on the mat", "a cat sat there"), ("one two three", "three two one"), ("", "nothing to say")]


def reference_scores(reference, prediction):
    return {kind: score.fmeasure for kind, score in ORACLE.score(reference, prediction).items()}


def compute(pairs, **options):
    references, predictions = zip(*pairs, strict=True)
    return Rouge(keep_in_memory=True).compute(predictions=predictions, references=references, **options)


def read_lines(path, count=None):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in islice(file, count)]


def lead_pairs(test_data, count=None):
    folder = test_data / "rouge_oracle"
    names = ("gold-test-sentences.txt.gz", "lead-test-output.txt.gz")
    return list(zip(*(read_lines(folder / name, count) for name in names), strict=True))


@given(reference=TEXTS, prediction=TEXTS)
def test_a_pair_has_the_scores_of_rouge_score(reference, prediction):
    tokenize = DefaultTokenizer(use_stemmer=False).tokenize

    assert rouge(tokenize(reference), tokenize(prediction)) == pytest.approx(
        reference_scores(reference, prediction), rel=0, abs=1e-12
    )


@settings(deadline=None, max_examples=25)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_the_metric_has_the_item_scores_of_rouge_score(pairs):
    columns = compute(pairs, aggregate=False)

    for kind in KINDS:
        assert columns[kind] == pytest.approx([reference_scores(*pair)[kind] for pair in pairs], rel=0, abs=1e-12)


@given(a=st.lists(st.integers(0, 3), max_size=90), b=st.lists(st.integers(0, 3), max_size=90))
def test_the_bit_parallel_lcs_equals_dynamic_programming(a, b):
    table = [0] * (len(b) + 1)
    for token in a:
        above = table
        table = [0]
        for j, other in enumerate(b):
            table.append(above[j] + 1 if token == other else max(above[j + 1], table[j]))

    assert longest_common_subsequence(a, b) == table[-1]


def test_the_aggregate_is_the_mean_of_the_items():
    columns = compute(PAIRS, aggregate=False)

    assert compute(PAIRS) == {kind: sum(columns[kind]) / len(PAIRS) for kind in KINDS}


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="number of predictions"):
        Rouge(keep_in_memory=True).compute(predictions=["a", "b"], references=["a"])
    with pytest.raises(ValueError, match="zip"):
        Rouge(keep_in_memory=True)._compute(predictions=["a", "b"], references=["a"])


def test_no_network_is_needed(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("opened a socket"))

    assert compute([("same words", "same words")]) == dict.fromkeys(KINDS, 1.0)


def test_the_mean_of_a_published_output_equals_rouge_score(test_data):
    pairs = lead_pairs(test_data, count=2000)
    rows = [reference_scores(*pair) for pair in pairs]

    assert compute(pairs) == {kind: sum(row[kind] for row in rows) / len(rows) for kind in KINDS}


def test_a_published_output_has_the_known_scores(test_data):
    pairs = lead_pairs(test_data)

    points = {kind: 100 * value for kind, value in compute(pairs).items()}

    assert len(pairs) == 11_334
    assert points == pytest.approx({"rouge1": 15.20, "rouge2": 1.49, "rougeL": 11.34}, rel=0, abs=0.01)
