"""Tokenization: turn a mixture into training rows with loss masks, using compiled chat templates.

Verified during the run (a failure stops it): every trained turn ends with a trained stop token; every example has
tokens with loss; and for the first examples and a sample of the others, the ids equal those of the tokenizer's own
chat template, with the prompt's ids as their prefix, so that training and inference use the same tokens. The tokens of
an example depend only on the example, the tokenizer and the config, never on other examples.
"""

import logging
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from tuneline import progress
from tuneline.config.sections.data import TokenizeConfig, TokenizeStepConfig
from tuneline.data import gc_pause, schema
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import html_preview, preference_rows, row_writer
from tuneline.data.tokenization import tokenized_examples as items_module
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
        DataError: The examples are of a kind that the stage does not train on, an example is longer than a row and
            `overlong` is `refuse`, or too many examples are truncated.
        RecipeError: `packing: wrapped` is set for chats.
        VerificationError: A loss mask or the parity with the chat template does not hold.
    """
    tokenizer = load_tokenizer(tokenizer_manifest)
    sequencer = Sequencer(tokenizer, config)
    splits, counts, preview = {}, dict[str, Any](), list[html_preview.PreviewSequence]()
    train = mixture.splits["train"]
    kinds = [schema.kind(example) for example in train.select(range(min(1, train.num_rows)))]
    kind = items_module.resolve_kind(kinds, config, "the mixture")
    for name in SPLITS:
        budgets = dict(config.max_tokens) if name == "train" else {}
        split = _tokenize_split(mixture.splits[name], sequencer, config, kind, budgets)
        splits[name], counts[name] = split.rows, split.counts
        preview = preview or split.preview
    if not splits["train"].num_rows:
        raise DataError(_no_rows_message(counts["train"], config))
    if mixture.splits["validation"].num_rows and not splits["validation"].num_rows:
        raise DataError(
            f"Every held-out example is longer than tokenize.max_length {config.max_length}, so no validation rows "
            f"remain. Raise it{_alternative(config)}."
        )
    identity = {
        "tokenizer": tokenizer_manifest.content_hash(),
        "chat_template": digest(tokenizer.chat_template),
        **config.model_dump(),
    }
    return Corpus(splits, identity, counts, html_preview.preview(preview, tokenizer))


def _alternative(config: TokenizeConfig) -> str:
    return ", or set tokenize.overlong: proportional" if config.overlong == "drop" else ""


def _no_rows_message(counts: dict[str, Any], config: TokenizeStepConfig) -> str:
    beyond_budget = counts.get("beyond_max_tokens")
    if beyond_budget:
        name = next(iter(beyond_budget))
        return f"sources: {name} has no example within its max_tokens of {config.max_tokens[name]}. Raise it."
    return f"Every training example is longer than tokenize.max_length {config.max_length}. Raise it."


@dataclass
class _TokenizedSplit:
    """The rows of a split, their counts, and the first sequences for the preview."""

    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    num_trained: int = 0
    beyond_budget: Counter[str] = field(default_factory=Counter)
    preview: list[html_preview.PreviewSequence] = field(default_factory=list)
    rows: Dataset = field(init=False)
    counts: dict[str, Any] = field(default_factory=dict)

    def add(self, item: items_module.TokenizedExample) -> None:
        """Count an example, and keep the sequences of the first ones."""
        for sequence in item.sequences:
            self.lengths.append(len(sequence.input_ids))
            self.num_trained += html_preview.count_trained_tokens(sequence)
        self.preview += item.preview_sequences() if len(self.preview) < NUM_PREVIEW_SEQUENCES else []


def _tokenize_split(
    examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, kind: str, budgets: dict[str, int]
) -> _TokenizedSplit:
    """Tokenize one split; start over with the original template if the compiled one produces different ids."""
    try:
        split = _tokenize_all(examples, sequencer, config, kind, dict(budgets))
    except CompiledTemplateMismatchError as error:
        logger.warning("%s Falling back to rendering every example with the original template.", error)
        sequencer.disable_compiled_template()
        split = _tokenize_all(examples, sequencer, config, kind, dict(budgets))
    sequencer.check_truncated_fraction()
    split.counts = _counts(split, sequencer, config, kind)
    return split


def _tokenize_all(
    examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, kind: str, budgets: dict[str, int]
) -> _TokenizedSplit:
    split = _TokenizedSplit()
    is_preference = kind in preference_rows.ANSWERS_BY_KIND
    writer = preference_rows.PreferenceRowWriter(kind) if is_preference else row_writer.TokenizedSpool()
    with gc_pause.gc_disabled(), progress.bar("tokens", examples.num_rows) as advance:
        for num_processed, items in items_module.tokenize_examples(examples, sequencer, config, kind):
            for item in items:
                budget = budgets.get(item.source)
                if budget is not None and budget < item.num_tokens:
                    split.beyond_budget[item.source] += 1
                    continue
                if budget is not None:
                    budgets[item.source] = budget - item.num_tokens
                split.add(item)
                writer.add(item.row or item.sequences[0])
            advance(num_processed)
    split.rows = writer.rows(config.max_length, config.packing)
    return split


def _counts(split: _TokenizedSplit, sequencer: Sequencer, config: TokenizeConfig, kind: str) -> dict[str, Any]:
    total = sum(split.lengths)
    is_preference = kind in preference_rows.ANSWERS_BY_KIND
    fill = {} if is_preference else {"fill": row_writer.fill_rate(split.rows, total, config.max_length)}
    return {
        **sequencer.counts,
        "sequences": len(split.lengths),
        "rows": split.rows.num_rows,
        "tokens": total,
        "trained_tokens": split.num_trained,
        "coverage": round(split.num_trained / max(total, 1), 4),
        **fill,
        "longest": max(split.lengths, default=0),
        "lengths": row_writer.length_histogram(split.lengths, config.max_length),
        "rendering": sequencer.rendering,
        "beyond_max_tokens": dict(split.beyond_budget),
    }


def tokenize(example: dict[str, Any], tokenizer: Any, config: TokenizeConfig | None = None) -> list[TokenizedSequence]:
    """Tokenize one example; returns several sequences if it is split, none if it is dropped."""
    sequencer = Sequencer(tokenizer, config or TokenizeConfig())
    return [sequence for _, sequence in sequencer.sequences([example])]
