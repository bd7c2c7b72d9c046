"""Tokens and masks: a mixture -> training rows, by compiled chat templates.

Proved while it runs (a failure stops the run): every trained turn ends with a trained stop token, no example is
without loss, and the ids of the first examples and of a sample of the others equal those of the tokenizer's own
template, with the prompt's ids as their beginning, so that training and answering see the same tokens. A row's tokens
depend on the example, the tokenizer and the config alone, never on other rows.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from tuneline import progress
from tuneline.config.data import TokenizeConfig, TokenizeStepConfig
from tuneline.data import corpus, pairs, pause, preview, rows, schema, sequences
from tuneline.data.corpus import Corpus
from tuneline.data.sequences import CompiledDiffersError, Sequencer
from tuneline.data.tokenizer import load_tokenizer
from tuneline.data.tokens import Tokens
from tuneline.errors import DataError, RecipeError
from tuneline.identity import Manifest, digest

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
SHOWN = 12
KINDS: dict[str, tuple[schema.Kind, ...]] = {
    "pretrain": ("text",),
    "sft": ("chat", "text"),
    "preference": ("preference",),
    "kto": ("kto",),
    "prompt": ("chat",),
}
"""Kinds of examples that a stage trains on."""


def tokenize_pack(mixture: Corpus, tokenizer_manifest: Manifest, config: TokenizeStepConfig) -> Corpus:
    """Turn a mixture into training rows.

    Returns:
        Splits `train` and `validation`; rows of `input_ids`, `labels`, `position_ids` (each [tokens in the row]),
        `lengths` (tokens of each example in the row, in order) and `example_ids`. For preference stages, rows of
        prompt and answers (`tuneline.data.pairs`).

    Raises:
        DataError: The examples are of another kind than the stage trains on, one is longer than a row and `overlong`
            says refuse, or too many are cut.
        RecipeError: Chats would be wrapped.
        ProofError: A mask or the template's parity does not hold.
    """
    tokenizer = load_tokenizer(tokenizer_manifest)
    sequencer = Sequencer(tokenizer, config)
    splits, counts, shown = {}, dict[str, Any](), list[Tokens]()
    kind = _kind(mixture.splits["train"], config.stage)
    _refuse_torn_chats(kind, config)
    answers = config.stage if config.stage == "prompt" else kind
    for name in SPLITS:
        if answers in pairs.ANSWERS:
            splits[name], counts[name] = pairs.tokenize_split(mixture.splits[name], sequencer, config, answers)
            continue
        budgets = dict(config.max_tokens) if name == "train" else {}
        splits[name], counts[name], first = _tokenize_split(mixture.splits[name], sequencer, config, budgets)
        shown = shown or first
    if not splits["train"].num_rows:
        raise DataError(_nothing_left(counts["train"], config))
    if mixture.splits["validation"].num_rows and not splits["validation"].num_rows:
        raise DataError(
            f"Every held-out example is longer than tokenize.max_length {config.max_length}, so nothing is left to "
            "measure. Raise it, or set tokenize.overlong: proportional."
        )
    identity = {
        "tokenizer": tokenizer_manifest.content_hash(),
        "chat_template": digest(tokenizer.chat_template),
        **config.model_dump(),
    }
    page = preview.page(shown, tokenizer, counts["train"]) if shown else ""
    return Corpus(splits, identity, counts, page)


def _kind(examples: Dataset, stage: str) -> schema.Kind:
    """Return the kind of a mixture's examples (it holds one kind only).

    Raises:
        DataError: The stage trains on another kind.
    """
    kind = schema.kind(examples[0]) if examples.num_rows else KINDS[stage][0]
    if kind not in KINDS[stage]:
        raise DataError(
            f"the data hold examples of kind {kind}; stage {stage} trains on {' or '.join(KINDS[stage])}. Set format, "
            "or take other data."
        )
    return kind


def _refuse_torn_chats(kind: schema.Kind, config: TokenizeConfig) -> None:
    if config.packing == "wrapped" and kind != "text":
        raise RecipeError(
            f"tokenize.packing: wrapped cuts one stream of texts into rows, and the data hold examples of kind {kind}, "
            "whose answers it would tear from their questions. Set packing: true."
        )


def _nothing_left(counts: dict[str, Any], config: TokenizeStepConfig) -> str:
    beyond = counts.get("beyond_max_tokens")
    if beyond:
        name = next(iter(beyond))
        return f"sources: {name} has no example within its max_tokens of {config.max_tokens[name]}. Raise it."
    return f"Every training example is longer than tokenize.max_length {config.max_length}. Raise it."


def _tokenize_split(
    examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, budgets: dict[str, int]
) -> tuple[Dataset, dict[str, Any], list[Tokens]]:
    """Tokenize one split; from its beginning by the template alone, where the compiled one turns out to differ."""
    try:
        waiting, left_out, shown = _tokenize_all(examples, sequencer, dict(budgets))
    except CompiledDiffersError as error:
        logger.warning("%s Rendering example by example from here on.", error)
        sequencer.distrust()
        waiting, left_out, shown = _tokenize_all(examples, sequencer, dict(budgets))
    sequencer.check_cuts()
    made = waiting.rows(config.max_length, config.packing)
    return made, _counts(waiting, made, sequencer, config) | {"beyond_max_tokens": dict(left_out)}, shown


def _tokenize_all(
    examples: Dataset, sequencer: Sequencer, budgets: dict[str, int]
) -> tuple[rows.Waiting, Counter[str], list[Tokens]]:
    waiting, left_out = rows.Waiting(), Counter[str]()
    shown: list[Tokens] = []
    sequencer.start()
    with pause.no_cycles(), progress.bar("tokens", examples.num_rows) as advance:
        done = 0
        for batch in corpus.batches(examples):
            for source, tokens in sequencer.sequences(schema.from_batch(batch, sequences.COLUMNS)):
                if source in budgets:
                    if budgets[source] < len(tokens.input_ids):
                        left_out[source] += 1
                        continue
                    budgets[source] -= len(tokens.input_ids)
                waiting.add(tokens)
                shown += [tokens] if len(shown) < SHOWN else []
            done += batch.num_rows
            advance(done)
    return waiting, left_out, shown


def _counts(waiting: rows.Waiting, made: Dataset, sequencer: Sequencer, config: TokenizeConfig) -> dict[str, Any]:
    total = sum(waiting.lengths)
    return {
        **sequencer.counts,
        "sequences": len(waiting.lengths),
        "rows": made.num_rows,
        "tokens": total,
        "trained_tokens": waiting.num_trained,
        "coverage": round(waiting.num_trained / max(total, 1), 4),
        "fill": rows.fill(made, total, config.max_length),
        "longest": max(waiting.lengths, default=0),
        "lengths": rows.histogram(waiting.lengths, config.max_length),
        "rendering": sequencer.rendering,
    }


def tokenize(example: dict[str, Any], tokenizer: Any, config: TokenizeConfig | None = None) -> list[Tokens]:
    """Tokenize one example; several sequences where it is split, none where it is dropped."""
    sequencer = Sequencer(tokenizer, config or TokenizeConfig())
    made: Iterator[tuple[str, Tokens]] = iter(sequencer.sequences([example]))
    return [tokens for _, tokens in made]
