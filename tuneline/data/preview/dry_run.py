"""Sequences of a few examples, as a run would make them, and their lengths as they were before any cut."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.data.tokenization import items as items_module
from tuneline.data.tokenization import preference_rows, row_writer
from tuneline.data.tokenization.html_preview import PreviewSequence
from tuneline.data.tokenization.sequencer import CompiledTemplateMismatchError, Sequencer
from tuneline.errors import DataError

UNLIMITED_LENGTH = 2**31 - 1
NUM_BINS = 10

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class DryRunResult:
    """Sequences of one data set: those to show, all in a file, what was done to them, and what is told of that."""

    shown: list[PreviewSequence] = field(default_factory=list)
    waiting: row_writer.TokenizedSpool = field(default_factory=row_writer.TokenizedSpool)
    done: dict[str, int] = field(default_factory=dict)
    rendering: str = ""
    counts: dict[str, Any] = field(default_factory=dict)


class DryRun:
    """Makes sequences: first at any length, so that lengths are those of the data, then cut where some are too long."""

    def __init__(self, tokenizer: Any, config: TokenizeStepConfig, num_shown: int) -> None:
        self.config = config
        self.places: dict[str, str] = {}
        """Where examples stand, by their ids; filled as they are read."""
        self._tokenizer = tokenizer
        self._num_shown = num_shown
        self._at_any_length = config.model_copy(update={"max_length": UNLIMITED_LENGTH})
        self._whole = Sequencer(tokenizer, self._at_any_length, places=self.places)
        self._cutting: Sequencer | None = None
        self._totals: Counter[str] = Counter()
        self._refused: DataError | None = None

    def make(self, examples: Dataset, kind: str) -> DryRunResult:
        """Make the sequences of one data set; where too long ones are refused, they are kept as they are.

        Args:
            examples: Rows of `schema.EXAMPLE`.
            kind: As `prepare.kind_of` tells it.
        """
        whole = self._make(examples, self._whole, self._at_any_length, kind)
        lengths = np.array(whole.waiting.lengths, np.int64)
        made = self._cut(examples, kind) if lengths.size and lengths.max() > self.config.max_length else whole
        kept = made or whole
        self._totals.update(kept.done)
        counts = _counts(kept, lengths, self.config)
        is_packed = made is not None and kind not in preference_rows.ANSWERS_BY_KIND
        return replace(kept, counts=counts | _laid_out(kept, self.config) if is_packed else counts)

    def problem(self) -> DataError | None:
        """Return what a run would refuse about the lengths of all that was made."""
        if self._refused or self._cutting is None:
            return self._refused
        self._cutting.start()
        self._cutting.counts.update(self._totals)
        try:
            self._cutting.check_truncated_fraction()
        except DataError as error:
            return error
        return None

    def _cut(self, examples: Dataset, kind: str) -> DryRunResult | None:
        self._cutting = self._cutting or Sequencer(self._tokenizer, self.config, places=self.places)
        try:
            return self._make(examples, self._cutting, self.config, kind)
        except DataError as error:  # all else was refused when the sequences were whole
            self._refused = self._refused or error
        return None

    def _make(self, examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, kind: str) -> DryRunResult:
        try:
            return self._make_once(examples, sequencer, config, kind)
        except CompiledTemplateMismatchError:
            sequencer.disable_compiled_template()
            return self._make_once(examples, sequencer, config, kind)

    def _make_once(
        self, examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, kind: str
    ) -> DryRunResult:
        made, num_items = DryRunResult(), 0
        for _, items in items_module.tokenize_examples(examples, sequencer, config, kind):
            for item in items:
                for tokens in item.sequences:
                    made.waiting.add(tokens)
                if num_items < self._num_shown:
                    made.shown.extend(item.shown(self.places.get(item.sequences[0].example_id, "")))
                num_items += 1
        return replace(made, done=dict(sequencer.counts), rendering=sequencer.rendering)


def _counts(made: DryRunResult, lengths: Lengths, config: TokenizeStepConfig) -> dict[str, Any]:
    tokens, trained = sum(made.waiting.lengths), made.waiting.num_trained
    return {
        "tokens_a_sequence": _quantiles(lengths),
        "max_length": config.max_length,
        "sequences": lengths.size,
        "too_long": int((lengths > config.max_length).sum()),
        "overlong": config.overlong,
        "cut": made.done["cut"],
        "dropped_for_length": made.done["dropped"],
        "made_by_split": made.done["made_by_split"],
        "tokens": tokens,
        "trained_tokens": trained,
        "coverage": round(trained / max(tokens, 1), 4),
        "empty_thoughts": made.done["empty_thoughts"],
        "empty_thought_tokens": made.done["empty_thought_tokens"],
        "rendering": made.rendering,
        "rendered_by_template": made.done["rendered_by_template"],
        "lengths": _histogram(lengths, config.max_length),
    }


def _laid_out(made: DryRunResult, config: TokenizeStepConfig) -> dict[str, Any]:
    laid_out = made.waiting.rows(config.max_length, config.packing)
    fill = row_writer.fill_rate(laid_out, sum(made.waiting.lengths), config.max_length)
    return {"packed_rows": laid_out.num_rows, "fill": fill}


def _quantiles(lengths: Lengths) -> dict[str, int]:
    if not lengths.size:
        return {}
    found = np.quantile(lengths, (0, 0.5, 0.95, 1), method="nearest").astype(int).tolist()
    return dict(zip(("shortest", "median", "p95", "longest"), found, strict=True))


def _histogram(lengths: Lengths, max_length: int) -> dict[str, list[int]]:
    """Count by length up to `max_length`, and all that is longer in a last bin; an edge belongs to what follows it."""
    fitting = lengths[lengths <= max_length]
    edges, counts = [max_length + 1], list[int]()
    if fitting.size:
        low, high = int(fitting.min()), int(fitting.max()) + 1
        edges = np.unique(np.linspace(low, high, NUM_BINS + 1).round().astype(int)).tolist()
        counts = np.histogram(fitting, edges)[0].tolist()
    if fitting.size < lengths.size:
        edges = [*(edges[:-1] if counts else []), max_length + 1, int(lengths.max()) + 1]
        counts.append(int(lengths.size - fitting.size))
    return {"edges": edges, "counts": counts}
