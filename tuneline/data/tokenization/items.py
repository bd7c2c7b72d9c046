"""One path from examples to what the model sees, for every stage: a run and the preview both take it."""

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
"""Kinds of examples that a stage trains on."""


class TokenizedExample(NamedTuple):
    """What becomes of an example: one sequence; or a row of prompt and answers, each a sequence behind the prompt."""

    source: str
    sequences: list[TokenizedSequence]
    row: preference_rows.Row | None = None

    @property
    def num_tokens(self) -> int:
        """Add up the sequences' tokens."""
        return sum(len(tokens.input_ids) for tokens in self.sequences)

    def shown(self, place: str = "") -> list[PreviewSequence]:
        """Return the sequences to look at, each with the example's place and what it is."""
        names = preference_rows.answer_names(self.row) if self.row else [""]
        return [
            PreviewSequence(tokens, ", ".join(part for part in (place, name) if part))
            for tokens, name in zip(self.sequences, names, strict=True)
        ]


def tokenize_examples(
    examples: Dataset, sequencer: Sequencer, config: TokenizeConfig, kind: str
) -> Iterator[tuple[int, list[TokenizedExample]]]:
    """Yield how many examples are done, and the items of the last batch of them, in order.

    Args:
        examples: Rows of `schema.EXAMPLE`, all of one kind.
        sequencer: Makes token sequences, as `config` says.
        config: The policy.
        kind: The examples' kind, or `prompt`.

    Raises:
        TunelineError: As `Sequencer.sequences` and `pairs.rows_of`.
    """
    sequencer.start()
    done = 0
    for batch in corpus.iter_batches(examples):
        if kind in preference_rows.ANSWERS_BY_KIND:
            made = preference_rows.build_rows(
                schema.from_arrow_batch(batch, preference_rows.INPUT_COLUMNS), sequencer, config, kind
            )
            items = [TokenizedExample(row["source"], preference_rows.to_sequences(row), row) for row in made]
        else:
            found = sequencer.sequences(schema.from_arrow_batch(batch, sequencer_module.INPUT_COLUMNS))
            items = [TokenizedExample(source, [tokens]) for source, tokens in found]
        done += batch.num_rows
        yield done, items


def resolve_kind(kinds: Iterable[schema.Kind], config: TokenizeStepConfig, place: str) -> str:
    """Return what a stage makes of examples: their kind, or `prompt` where it answers them anew.

    Args:
        kinds: Of the examples; none for an empty split.
        config: The policy and the stage.
        place: What holds them, for errors.

    Raises:
        DataError: The stage trains on another kind.
        RecipeError: Chats would be wrapped.
    """
    known, kind = KINDS_BY_STAGE[config.stage], KINDS_BY_STAGE[config.stage][0]
    for kind in kinds:
        if kind not in known:
            raise DataError(
                f"{place} holds examples of kind {kind}; stage {config.stage} trains on {' or '.join(known)}. Set "
                "format, or take other data."
            )
        if config.packing == "wrapped" and kind != "text":
            raise RecipeError(
                f"tokenize.packing: wrapped cuts one stream of texts into rows, and {place} holds examples of kind "
                f"{kind}, whose answers it would tear from their questions. Set packing: true."
            )
    return config.stage if config.stage == "prompt" else kind
