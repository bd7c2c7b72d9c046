"""BLEU-4 and chrF by sacrebleu, exact match and token F1, as `evaluate` metrics that need no network.

BLEU and chrF are corpus metrics. An item gets its sentence score (BLEU with effective order); the report also shows the
corpus score with sacrebleu's signature.
"""

from collections.abc import Sequence

import evaluate
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tuneline.data import rewards
from tuneline.evaluation.metrics import text_tokenizer
from tuneline.evaluation.metrics.base import Columns, TextMetric, metric_info


class Bleu(TextMetric):
    """Sentence BLEU-4 per item, 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("BLEU-4 (Papineni et al. 2002) by sacrebleu", "Post 2018, arXiv:1804.08771")

    def _columns(self, predictions: list[str], references: list[str], tokenize: str = "13a") -> Columns:
        scorer = BLEU(tokenize=tokenize, effective_order=True)
        pairs = zip(predictions, references, strict=True)
        return {"bleu": [scorer.sentence_score(p, [r]).score / 100 for p, r in pairs]}


class ChrF(TextMetric):
    """Sentence chrF per item, 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("chrF2 (Popovic 2015) by sacrebleu", "Popovic 2015, chrF: character n-gram F-score")

    def _columns(self, predictions: list[str], references: list[str]) -> Columns:
        scorer = CHRF()
        pairs = zip(predictions, references, strict=True)
        return {"chrf": [scorer.sentence_score(p, [r]).score / 100 for p, r in pairs]}


class ExactMatch(TextMetric):
    """1 if the answer equals the reference after stripping white space, else 0."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("Exact match", "Rajpurkar et al. 2016, arXiv:1606.05250")

    def _columns(self, predictions: list[str], references: list[str]) -> Columns:
        pairs = zip(predictions, references, strict=True)
        return {"exact_match": [float(p.strip() == r.strip()) for p, r in pairs]}


class TokenF1(TextMetric):
    """F1 over the tokens shared by answer and reference, ignoring case, punctuation and articles, as in SQuAD."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("Token F1", "Rajpurkar et al. 2016, arXiv:1606.05250")

    def _columns(self, predictions: list[str], references: list[str], cut: text_tokenizer.Cut = "words") -> Columns:
        pairs = zip(predictions, references, strict=True)
        return {"token_f1": [rewards.token_f1(_tokens(p, cut), _tokens(r, cut)) for p, r in pairs]}


def corpus_score(name: str, predictions: Sequence[str], references: Sequence[str], tokenize: str) -> tuple[float, str]:
    """Return the corpus score of `bleu` or `chrf`, 0 to 100, and sacrebleu's signature."""
    scorer = BLEU(tokenize=tokenize) if name == "bleu" else CHRF()
    return scorer.corpus_score(list(predictions), [list(references)]).score, str(scorer.get_signature())


def _tokens(text: str, cut: text_tokenizer.Cut) -> list[str]:
    return text_tokenizer.CharacterTokenizer().tokenize(text) if cut == "characters" else rewards.normalized_words(text)
