"""Tokenized examples of every stage; runs and previews share this code path."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from datasets import Dataset

from tuneline.config.sections.data import TokenizeConfig, TokenizeStepConfig
from tuneline.data import corpus, schema
from tuneline.data.tokenization import preference_rows
from tuneline.data.tokenization import sequencer as sequencer_module
from tuneline.data.tokenization.html_preview import PreviewSequence
from tuneline.data.tokenization.loss_mask import TokenizedSequence
from tuneline.data.tokenization.sequencer import Sequencer
from tuneline.errors import DataError, RecipeError

KINDS_BY_STAGE: dict[str, tuple[schema.Kind, ...]] = {
    "pretrain": ("text",),
    "sft": ("chat", "text"),
    "preference": ("preference",),
    "kto": ("kto",),
    "prompt": ("chat",),
}
"""Kinds of examples that each stage trains on."""


class TokenizedExample(NamedTuple):
    """The result for one example: one sequence, or a row of a prompt and its answers with one sequence per answer."""

    source: str
    sequences: list[TokenizedSequence]
    row: preference_rows.Row | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all sequences."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)

    def preview_sequences(self, location: str = "") -> list[PreviewSequence]:
        """Return the sequences for a preview, each named by the example's location and the role of the answer."""
        names = preference_rows.answer_names(self.row) if self.row else [""]
        return [
            PreviewSequence(sequence, ", ".join(part for part in (location, name) if part))
            for sequence, name in zip(self.sequences, names, strict=True)
        ]


def tokenize_examples(
    examples: Dataset, sequencer: Sequencer, config: TokenizeConfig, kind: str
) -> Iterator[tuple[int, list[TokenizedExample]]]:
    """Yield the number of examples processed so far, and the tokenized examples of the last batch in order.

    Args:
        examples: Rows of `schema.EXAMPLE`, all of one kind.
        sequencer: Makes token sequences according to `config`.
        config: The `tokenize` section of the recipe.
        kind: The kind of the examples, or `prompt`.

    Raises:
        TunelineError: As `Sequencer.sequences` and `preference_rows.build_rows`.
    """
    sequencer.start()
    num_processed = 0
    for batch in corpus.iter_batches(examples):
        if kind in preference_rows.ANSWERS_BY_KIND:
            batch_examples = schema.from_arrow_batch(batch, preference_rows.INPUT_COLUMNS)
            rows = preference_rows.build_rows(batch_examples, sequencer, config, kind)
            items = [TokenizedExample(row["source"], preference_rows.to_sequences(row), row) for row in rows]
        else:
            sequences = sequencer.sequences(schema.from_arrow_batch(batch, sequencer_module.INPUT_COLUMNS))
            items = [TokenizedExample(source, [sequence]) for source, sequence in sequences]
        num_processed += batch.num_rows
        yield num_processed, items


def resolve_kind(kinds: Iterable[schema.Kind], config: TokenizeStepConfig, owner: str) -> str:
    """Return the kind of rows that a stage makes: the kind of the examples, or `prompt` where answers are generated.

    Args:
        kinds: Kinds of the examples; empty for an empty split.
        config: The `tokenize` section and the stage.
        owner: What contains the examples, for error messages.

    Raises:
        DataError: The stage trains on another kind.
        RecipeError: `packing: wrapped` is set for examples other than texts.
    """
    supported, kind = KINDS_BY_STAGE[config.stage], KINDS_BY_STAGE[config.stage][0]
    for kind in kinds:
        if kind not in supported:
            raise DataError(
                f"{owner} contains examples of kind {kind}; stage {config.stage} trains on {' or '.join(supported)}. "
                "Set format, or use other data."
            )
        if config.packing == "wrapped" and kind != "text":
            raise RecipeError(
                f"tokenize.packing: wrapped cuts a single stream of texts into rows, and {owner} contains examples of "
                f"kind {kind}, whose answers would be separated from their prompts. Set packing: true."
            )
    return config.stage if config.stage == "prompt" else kind
