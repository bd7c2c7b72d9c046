"""ROUGE-1/2/L as an `evaluate.Metric` that needs no network.

Tokens and definition are those of `rouge_score`, which is the oracle in the tests; the longest common subsequence is
computed with bit-parallel integers (Hyyro 2004, "Bit-parallel LCS-length computation revisited") in place of its table.
"""

from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate
from rouge_score.tokenizers import DefaultTokenizer

KINDS = ("rouge1", "rouge2", "rougeL")
VERSION = "rouge_score 0.1.2 tokens, no stemmer, F1"


class Rouge(evaluate.Metric):
    """Mean ROUGE F1; with `aggregate=False`, the scores of each item."""

    def _info(self) -> evaluate.MetricInfo:
        strings = datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")})
        return evaluate.MetricInfo(
            description="ROUGE-1/2/L F1 (Lin 2004)",
            citation="Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries",
            inputs_description="predictions and references: lists of texts",
            features=strings,
        )

    def _compute(
        self, predictions: list[str], references: list[str], aggregate: bool = True
    ) -> dict[str, float] | dict[str, list[float]]:
        tokenizer = DefaultTokenizer(use_stemmer=False)
        pairs = zip(references, predictions, strict=True)
        rows = [rouge(tokenizer.tokenize(r), tokenizer.tokenize(p)) for r, p in pairs]
        columns = {kind: [row[kind] for row in rows] for kind in KINDS}
        return {kind: sum(values) / len(values) for kind, values in columns.items()} if aggregate else columns


def rouge(reference: Sequence[str], prediction: Sequence[str]) -> dict[str, float]:
    """Return the F1 of one pair of token sequences, by kind."""
    scores = {}
    for n in (1, 2):
        wanted, got = (
            Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in (reference, prediction)
        )
        scores[f"rouge{n}"] = _f1((wanted & got).total(), wanted.total(), got.total())
    return scores | {"rougeL": _f1(common_subsequence(reference, prediction), len(reference), len(prediction))}


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence: one big-integer step for each token of `b`."""
    where: dict[str, int] = {}
    for i, token in enumerate(a):
        where[token] = where.get(token, 0) | 1 << i
    ones = state = (1 << len(a)) - 1
    for token in b:
        hit = state & where.get(token, 0)
        state = (state + hit | state - hit) & ones
    return len(a) - state.bit_count()


def _f1(hits: int, wanted: int, got: int) -> float:
    precision, recall = hits / max(got, 1), hits / max(wanted, 1)
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
