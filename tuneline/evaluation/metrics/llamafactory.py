"""The scores that LlamaFactory's prediction reports (train/sft/metric.py of 0.9.5), for comparison with its tables.

They are not ROUGE and BLEU as others know them: words by jieba in every language, ROUGE by rouge-chinese (sets of
n-grams in place of counts), BLEU-4 of single characters with smoothing 3 of nltk.
"""

import logging

import evaluate

from tuneline.evaluation.metrics.base import Columns, TextMetric, metric_info

NAMES = {"rouge-1": "llamafactory_rouge1", "rouge-2": "llamafactory_rouge2", "rouge-l": "llamafactory_rougeL"}
BLEU = "llamafactory_bleu4"


class LlamaFactoryCompat(TextMetric):
    """LlamaFactory's four scores of each item, 0 to 1, rounded as it does."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("LlamaFactory's ROUGE-1/2/L and BLEU-4", "Zheng et al. 2024, arXiv:2403.13372")

    def _columns(self, predictions: list[str], references: list[str]) -> Columns:
        columns: Columns = {name: [] for name in (*NAMES.values(), BLEU)}
        for prediction, reference in zip(predictions, references, strict=True):
            for name, value in scores(prediction, reference).items():
                columns[name].append(value)
        return columns


def scores(prediction: str, reference: str) -> dict[str, float]:
    """Return the scores of one pair, by our names."""
    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel(logging.CRITICAL)
    said, wanted = (" ".join(jieba.cut(text)) for text in (prediction, reference))
    found = dict.fromkeys(NAMES.values(), 0.0)
    if said.split() and wanted.split():
        (row,) = Rouge().get_scores(said, wanted)
        found = {NAMES[kind]: round(parts["f"] * 100, 4) / 100 for kind, parts in row.items()}
    bleu = sentence_bleu([list(reference)], list(prediction), smoothing_function=SmoothingFunction().method3)
    return found | {BLEU: round(bleu * 100, 4) / 100}
