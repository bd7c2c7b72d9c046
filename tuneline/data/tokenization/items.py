"""One path from examples to what the model sees, for every stage: a run and the preview both take it."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from datasets import Dataset

from tuneline.config.sections.data import TokenizeConfig, TokenizeStepConfig
from tuneline.data import corpus, schema
from tuneline.data.tokenization import preference_rows
from tuneline.data.tokenization import sequencer as sequencer_module
from tuneline.data.tokenization.html_preview import Shown
from tuneline.data.tokenization.loss_mask import Tokens
from tuneline.data.tokenization.sequencer import Sequencer
from tuneline.errors import DataError, RecipeError

KINDS: dict[str, tuple[schema.Kind, ...]] = {
    "pretrain": ("text",),
    "sft": ("chat", "text"),
    "preference": ("preference",),
    "kto": ("kto",),
    "prompt": ("chat",),
}
"""Kinds of examples that a stage trains on."""


class Item(NamedTuple):
    """What becomes of an example: one sequence; or a row of prompt and answers, each a sequence behind the prompt."""

    source: str
    sequences: list[Tokens]
    row: preference_rows.Row | None = None

    @property
    def num_tokens(self) -> int:
        """Add up the sequences' tokens."""
        return sum(len(tokens.input_ids) for tokens in self.sequences)

    def shown(self, place: str = "") -> list[Shown]:
        """Return the sequences to look at, each with the example's place and what it is."""
        names = preference_rows.names_of(self.row) if self.row else [""]
        return [
            Shown(tokens, ", ".join(part for part in (place, name) if part))
            for tokens, name in zip(self.sequences, names, strict=True)
        ]


def prepare(
    examples: Dataset, sequencer: Sequencer, config: TokenizeConfig, kind: str
) -> Iterator[tuple[int, list[Item]]]:
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
    for batch in corpus.batches(examples):
        if kind in preference_rows.ANSWERS:
            made = preference_rows.rows_of(schema.from_batch(batch, preference_rows.COLUMNS), sequencer, config, kind)
            items = [Item(row["source"], preference_rows.sequences_of(row), row) for row in made]
        else:
            found = sequencer.sequences(schema.from_batch(batch, sequencer_module.COLUMNS))
            items = [Item(source, [tokens]) for source, tokens in found]
        done += batch.num_rows
        yield done, items


def kind_of(kinds: Iterable[schema.Kind], config: TokenizeStepConfig, place: str) -> str:
    """Return what a stage makes of examples: their kind, or `prompt` where it answers them anew.

    Args:
        kinds: Of the examples; none for an empty split.
        config: The policy and the stage.
        place: What holds them, for errors.

    Raises:
        DataError: The stage trains on another kind.
        RecipeError: Chats would be wrapped.
    """
    known, kind = KINDS[config.stage], KINDS[config.stage][0]
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
