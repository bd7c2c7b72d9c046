"""ROUGE-1/2/L/Lsum as an `evaluate.Metric` that needs no network.

Tokenization and definition are those of `rouge_score`, which the tests compare with. The longest common subsequence is
computed with bit-parallel integers (Hyyro 2004, "Bit-parallel LCS-length computation revisited").
"""

from collections import Counter
from collections.abc import Sequence

import evaluate
from rouge_score import rouge_scorer

from tuneline.evaluation.metrics import text_tokenizer
from tuneline.evaluation.metrics.base import Columns, TextMetric, metric_info

KINDS = ("rouge1", "rouge2", "rougeL")
SUMMARY = "rougeLsum"


class Rouge(TextMetric):
    """Mean ROUGE F1 of each kind; per-item scores with `aggregate=False`."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("ROUGE F1 (Lin 2004)", "Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries")

    def _columns(
        self,
        predictions: list[str],
        references: list[str],
        kinds: Sequence[str] = KINDS,
        cut: text_tokenizer.Cut = "words",
        use_stemmer: bool = False,
    ) -> Columns:
        tokenize = text_tokenizer.tokenizer(cut, use_stemmer=use_stemmer).tokenize
        pairs = list(zip(references, predictions, strict=True))
        rows = [rouge(tokenize(r), tokenize(p)) for r, p in pairs] if set(kinds) - {SUMMARY} else []
        columns = {kind: [row[kind] for row in rows] for kind in kinds if kind != SUMMARY}
        if SUMMARY in kinds:
            tokenized_lines = [
                [[tokenize(line) for line in text.split("\n") if line] for text in pair] for pair in pairs
            ]
            columns[SUMMARY] = [summary_level_f1(*pair) for pair in tokenized_lines]
        return columns


def rouge(reference: Sequence[str], prediction: Sequence[str]) -> dict[str, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L F1 of one pair of token sequences."""
    scores = {}
    for n in (1, 2):
        expected, actual = (
            Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in (reference, prediction)
        )
        scores[f"rouge{n}"] = _f1((expected & actual).total(), expected.total(), actual.total())
    return scores | {"rougeL": _f1(longest_common_subsequence(reference, prediction), len(reference), len(prediction))}


def summary_level_f1(reference: list[list[str]], prediction: list[list[str]]) -> float:
    """Return ROUGE-Lsum of two texts, given as tokenized lines; equal to ROUGE-L for single lines."""
    if len(reference) == len(prediction) == 1:
        hits = longest_common_subsequence(reference[0], prediction[0])
        return _f1(hits, len(reference[0]), len(prediction[0]))
    return float(rouge_scorer._summary_level_lcs(reference, prediction).fmeasure)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, with one big-integer operation per token of `b`."""
    where: dict[str, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << i
    ones = state = (1 << len(a)) - 1
    for token in b:
        hit = state & where.get(token, 0)
        state = (state + hit | state - hit) & ones
    return len(a) - state.bit_count()


def _f1(hits: int, num_reference: int, num_prediction: int) -> float:
    precision, recall = hits / max(num_prediction, 1), hits / max(num_reference, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
