"""The four scores of LlamaFactory's prediction (train/sft/metric.py of 0.9.5), for comparison with its tables.

They differ from standard ROUGE and BLEU: words are segmented by jieba in every language, ROUGE is rouge-chinese (sets
of n-grams instead of counts), and BLEU-4 is computed on characters with nltk's smoothing method 3.
"""

import logging

import evaluate

from tuneline.evaluation.metrics.base import Columns, TextMetric, metric_info

NAMES = {"rouge-1": "llamafactory_rouge1", "rouge-2": "llamafactory_rouge2", "rouge-l": "llamafactory_rougeL"}
BLEU = "llamafactory_bleu4"


class LlamaFactoryCompat(TextMetric):
    """LlamaFactory's four scores per item, 0 to 1, with its rounding."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("LlamaFactory's ROUGE-1/2/L and BLEU-4", "Zheng et al. 2024, arXiv:2403.13372")

    def _columns(self, predictions: list[str], references: list[str]) -> Columns:
        columns: Columns = {name: [] for name in (*NAMES.values(), BLEU)}
        for prediction, reference in zip(predictions, references, strict=True):
            for name, value in scores(prediction, reference).items():
                columns[name].append(value)
        return columns


def scores(prediction: str, reference: str) -> dict[str, float]:
    """Return the scores of one pair, under Tuneline's metric names."""
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel(logging.CRITICAL)
    hypothesis, target = (" ".join(jieba.cut(text)) for text in (prediction, reference))
    values = dict.fromkeys(NAMES.values(), 0.0)
    if hypothesis.split() and target.split():
        (row,) = Rouge().get_scores(hypothesis, target)
        values = {NAMES[kind]: round(parts["f"] * 100, 4) / 100 for kind, parts in row.items()}
    bleu = sentence_bleu([list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3)
    return values | {BLEU: round(bleu * 100, 4) / 100}
