"""Corpus-level metrics, which are not means over items: corpus BLEU and chrF, perplexity, number of empty answers.

Perplexity is the exponential of the negative mean log-likelihood over all scored tokens, not over texts.
"""

from math import exp

from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.evaluation.metrics import overlap, rouge, text_tokenizer
from tuneline.evaluation.score_store import Score
from tuneline.evaluation.tasks import lm_eval


def corpus_scores(scores: list[Score], config: EvaluateStepConfig) -> dict[str, float]:
    """Return the corpus-level metrics of one model's held-out scores; BLEU and chrF from 0 to 100."""
    held_out = [score for score in scores if score.benchmark == "held_out"]
    tokens = sum(score.tokens for score in held_out)
    if tokens:
        nats = sum(score.tokens * score.metrics["log_likelihood"] for score in held_out if score.tokens)
        return {"perplexity": exp(-nats / tokens), "scored_tokens": float(tokens)}
    if not _are_generated(held_out, config):
        return {}
    outputs, references = [score.output for score in held_out], [score.reference for score in held_out]
    tokenize = text_tokenizer.bleu_tokenizer(text_tokenizer.resolve_cut(config.cut, references), references)
    metrics = {
        f"corpus_{name}": overlap.corpus_score(name, outputs, references, tokenize)[0]
        for name in ("bleu", "chrf")
        if name in config.metrics
    }
    return metrics | {"empty_answers": float(sum(not output for output in outputs))}


def describe_methods(scores: list[Score], config: EvaluateStepConfig) -> dict[str, str]:
    """Return how each metric is computed, as text: tokenization, stemming, signature, protocol."""
    descriptions = {f"{exam.name}_accuracy": exam.protocol for exam in config.exams}
    descriptions |= {
        f"{task.name}_{column}": lm_eval.describe(task) for task in config.harness for column in task.columns()
    }
    held_out = [score for score in scores if score.benchmark == "held_out"]
    if not _are_generated(held_out, config):
        return descriptions
    references = [score.reference for score in held_out]
    cut = text_tokenizer.resolve_cut(config.cut, references)
    tokenize = text_tokenizer.bleu_tokenizer(cut, references)
    stems = ", stemmed" if config.use_stemmer and cut == "words" else ""
    for name in config.metrics:
        if name in (*rouge.KINDS, rouge.SUMMARY):
            descriptions[name] = f"F1; {text_tokenizer.NAMES[cut]}{stems}"
        elif name in ("bleu", "chrf"):
            descriptions[name] = overlap.corpus_score(name, ["x"], ["x"], tokenize)[1]
        elif name == "token_f1":
            descriptions[name] = "SQuAD" if cut == "words" else text_tokenizer.NAMES[cut]
        elif ":" in name:
            descriptions[name.partition(":")[2]] = f"{name}, sha256 {config.metric_hashes.get(name, '')[:12]}"
    return descriptions


def _are_generated(held_out: list[Score], config: EvaluateStepConfig) -> bool:
    return bool(held_out) and set(config.columns()) <= held_out[0].metrics.keys()
