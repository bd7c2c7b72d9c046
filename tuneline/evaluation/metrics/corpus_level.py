"""What scores say as a whole and no mean over items says: corpus BLEU and chrF, perplexity, empty answers.

Perplexity is exp of the negative mean log-likelihood over all scored tokens, not over texts.
"""

from math import exp

from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.evaluation.metrics import overlap, rouge, text_tokenizer
from tuneline.evaluation.score_store import Score
from tuneline.evaluation.tasks import lm_eval


def corpus_scores(scores: list[Score], config: EvaluateStepConfig) -> dict[str, float]:
    """Return the figures of one model's held-out scores: BLEU and chrF in points of a hundred."""
    held_out = [score for score in scores if score.benchmark == "held_out"]
    tokens = sum(score.tokens for score in held_out)
    if tokens:
        nats = sum(score.tokens * score.metrics["log_likelihood"] for score in held_out if score.tokens)
        return {"perplexity": exp(-nats / tokens), "scored_tokens": float(tokens)}
    if not _generated(held_out, config):
        return {}
    outputs, references = [score.output for score in held_out], [score.reference for score in held_out]
    tokenize = text_tokenizer.bleu_tokenizer(text_tokenizer.resolve_cut(config.cut, references), references)
    found = {
        f"corpus_{name}": overlap.corpus_score(name, outputs, references, tokenize)[0]
        for name in ("bleu", "chrf")
        if name in config.metrics
    }
    return found | {"empty_answers": float(sum(not output for output in outputs))}


def describe_methods(scores: list[Score], config: EvaluateStepConfig) -> dict[str, str]:
    """Return how each metric is made, in words: tokens, stems, signatures, protocols of exams."""
    told = {f"{exam.name}_accuracy": exam.protocol for exam in config.exams}
    told |= {f"{task.name}_{column}": lm_eval.describe(task) for task in config.harness for column in task.columns()}
    held_out = [score for score in scores if score.benchmark == "held_out"]
    if not _generated(held_out, config):
        return told
    references = [score.reference for score in held_out]
    cut = text_tokenizer.resolve_cut(config.cut, references)
    tokenize = text_tokenizer.bleu_tokenizer(cut, references)
    stems = ", stemmed" if config.use_stemmer and cut == "words" else ""
    for name in config.metrics:
        if name in (*rouge.KINDS, rouge.SUMMARY):
            told[name] = f"F1; {text_tokenizer.NAMES[cut]}{stems}"
        elif name in ("bleu", "chrf"):
            told[name] = overlap.corpus_score(name, ["x"], ["x"], tokenize)[1]
        elif name == "token_f1":
            told[name] = "SQuAD" if cut == "words" else text_tokenizer.NAMES[cut]
        elif ":" in name:
            told[name.partition(":")[2]] = f"{name}, sha256 {config.metric_hashes.get(name, '')[:12]}"
    return told


def _generated(held_out: list[Score], config: EvaluateStepConfig) -> bool:
    return bool(held_out) and set(config.columns()) <= held_out[0].metrics.keys()
