"""Tokens and masks: a mixture -> training rows, by compiled chat templates.

Proved while it runs (a failure stops the run): every trained turn ends with a trained stop token, no example is
without loss, and the ids of the first examples and of a sample of the others equal those of the tokenizer's own
template, with the prompt's ids as their beginning, so that training and answering see the same tokens. A row's tokens
depend on the example, the tokenizer and the config alone, never on other rows.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from tuneline import progress
from tuneline.config.sections.data import TokenizeConfig, TokenizeStepConfig
from tuneline.data import gc_pause, schema
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import html_preview, preference_rows, row_writer
from tuneline.data.tokenization import items as items_module
from tuneline.data.tokenization.loss_mask import TokenizedSequence
from tuneline.data.tokenization.sequencer import CompiledTemplateMismatchError, Sequencer
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.errors import DataError
from tuneline.identity import Manifest, digest

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
NUM_PREVIEW_SEQUENCES = 12


def tokenize_pack(mixture: Corpus, tokenizer_manifest: Manifest, config: TokenizeStepConfig) -> Corpus:
    """Turn a mixture into training rows.

    Returns:
        Splits `train` and `validation`; rows of `input_ids`, `labels`, `position_ids` (each [tokens in the row]),
        `lengths` (tokens of each example in the row, in order) and `example_ids`. For preference stages, rows of
        prompt and answers (`tuneline.data.tokenization.preference_rows`).

    Raises:
        DataError: The examples are of another kind than the stage trains on, one is longer than a row and `overlong`
            says refuse, or too many are cut.
        RecipeError: Chats would be wrapped.
        ProofError: A mask or the template's parity does not hold.
    """
    tokenizer = load_tokenizer(tokenizer_manifest)
    sequencer = Sequencer(tokenizer, config)
    splits, counts, shown = {}, dict[str, Any](), list[html_preview.PreviewSequence]()
    train = mixture.splits["train"]
    first = [schema.kind(example) for example in train.select(range(min(1, train.num_rows)))]
    kind = items_module.resolve_kind(first, config, "the mixture")
    for name in SPLITS:
        budgets = dict(config.max_tokens) if name == "train" else {}
        made = _tokenize_split(mixture.splits[name], sequencer, config, kind, budgets)
        splits[name], counts[name] = made.rows, made.counts
        shown = shown or made.shown
    if not splits["train"].num_rows:
        raise DataError(_nothing_left(counts["train"], config))
    if mixture.splits["validation"].num_rows and not splits["validation"].num_rows:
        raise DataError(
            f"Every held-out example is longer than tokenize.max_length {config.max_length}, so nothing is left to "
            f"measure. Raise it{_other_cut(config)}."
        )
    identity = {
        "tokenizer": tokenizer_manifest.content_hash(),
        "chat_template": digest(tokenizer.chat_template),
        **config.model_dump(),
    }
    return Corpus(splits, identity, counts, html_preview.preview(shown, tokenizer))


def _other_cut(config: TokenizeConfig) -> str:
    return ", or set tokenize.overlong: proportional" if config.overlong == "drop" else ""


def _nothing_left(counts: dict[str, Any], config: TokenizeStepConfig) -> str:
    beyond = counts.get("beyond_max_tokens")
    if beyond:
        name = next(iter(beyond))
        return f"sources: {name} has no example within its max_tokens of {config.max_tokens[name]}. Raise it."
    return f"Every training example is longer than tokenize.max_length {config.max_length}. Raise it."


@dataclass
class _Made:
    """What became of a split: rows, counts, and the first sequences."""

    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    num_trained: int = 0
    beyond_budget: Counter[str] = field(default_factory=Counter)
    shown: list[html_preview.PreviewSequence] = field(default_factory=list)
    rows: Dataset = field(init=False)
    counts: dict[str, Any] = field(default_factory=dict)

    def add(self, item: items_module.TokenizedExample) -> None:
        """Count an item, and keep the first ones."""
        for tokens in item.sequences:
            self.lengths.append(len(tokens.input_ids))
            self.num_trained += html_preview.count_trained_tokens(tokens)
        self.shown += item.shown() if len(self.shown) < NUM_PREVIEW_SEQUENCES else []


def _tokenize_split(
    examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, kind: str, budgets: dict[str, int]
) -> _Made:
    """Tokenize one split; from its beginning by the template alone, where the compiled one turns out to differ."""
    try:
        made = _tokenize_all(examples, sequencer, config, kind, dict(budgets))
    except CompiledTemplateMismatchError as error:
        logger.warning("%s Rendering example by example from here on.", error)
        sequencer.disable_compiled_template()
        made = _tokenize_all(examples, sequencer, config, kind, dict(budgets))
    sequencer.check_truncated_fraction()
    made.counts = _counts(made, sequencer, config, kind)
    return made


def _tokenize_all(
    examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, kind: str, budgets: dict[str, int]
) -> _Made:
    made = _Made()
    sink = (
        preference_rows.PreferenceRowWriter(kind)
        if kind in preference_rows.ANSWERS_BY_KIND
        else row_writer.TokenizedSpool()
    )
    with gc_pause.gc_disabled(), progress.bar("tokens", examples.num_rows) as advance:
        for done, items in items_module.tokenize_examples(examples, sequencer, config, kind):
            for item in items:
                left = budgets.get(item.source)
                if left is not None and left < item.num_tokens:
                    made.beyond_budget[item.source] += 1
                    continue
                if left is not None:
                    budgets[item.source] = left - item.num_tokens
                made.add(item)
                sink.add(item.row or item.sequences[0])
            advance(done)
    made.rows = sink.rows(config.max_length, config.packing)
    return made


def _counts(made: _Made, sequencer: Sequencer, config: TokenizeConfig, kind: str) -> dict[str, Any]:
    total = sum(made.lengths)
    packed = (
        {}
        if kind in preference_rows.ANSWERS_BY_KIND
        else {"fill": row_writer.fill_rate(made.rows, total, config.max_length)}
    )
    return {
        **sequencer.counts,
        "sequences": len(made.lengths),
        "rows": made.rows.num_rows,
        "tokens": total,
        "trained_tokens": made.num_trained,
        "coverage": round(made.num_trained / max(total, 1), 4),
        **packed,
        "longest": max(made.lengths, default=0),
        "lengths": row_writer.length_histogram(made.lengths, config.max_length),
        "rendering": sequencer.rendering,
        "beyond_max_tokens": dict(made.beyond_budget),
    }


def tokenize(example: dict[str, Any], tokenizer: Any, config: TokenizeConfig | None = None) -> list[TokenizedSequence]:
    """Tokenize one example; several sequences where it is split, none where it is dropped."""
    sequencer = Sequencer(tokenizer, config or TokenizeConfig())
    made: Iterator[tuple[str, TokenizedSequence]] = iter(sequencer.sequences([example]))
    return [tokens for _, tokens in made]
