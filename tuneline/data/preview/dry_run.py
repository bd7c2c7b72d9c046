"""Dry run of tokenization: the sequences of a few examples as a run makes them, and their original lengths."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.data.tokenization import preference_rows, row_writer
from tuneline.data.tokenization import tokenized_examples as items_module
from tuneline.data.tokenization.html_preview import PreviewSequence
from tuneline.data.tokenization.sequencer import CompiledTemplateMismatchError, Sequencer
from tuneline.errors import DataError

UNLIMITED_LENGTH = 2**31 - 1
NUM_BINS = 10

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class DryRunResult:
    """Sequences of one dataset: those to display, all in a spool, the sequencer's counters, and summary statistics."""

    shown: list[PreviewSequence] = field(default_factory=list)
    spool: row_writer.TokenizedSpool = field(default_factory=row_writer.TokenizedSpool)
    counters: dict[str, int] = field(default_factory=dict)
    rendering: str = ""
    counts: dict[str, Any] = field(default_factory=dict)


class DryRun:
    """Makes sequences without a length limit, to measure the data, and then truncated ones if some are too long."""

    def __init__(self, tokenizer: Any, config: TokenizeStepConfig, num_shown: int) -> None:
        self.config = config
        self.locations: dict[str, str] = {}
        """Locations (file:line) of examples by id; filled while examples are read."""
        self._tokenizer = tokenizer
        self._num_shown = num_shown
        self._unlimited_config = config.model_copy(update={"max_length": UNLIMITED_LENGTH})
        self._unlimited_sequencer = Sequencer(tokenizer, self._unlimited_config, locations=self.locations)
        self._truncating_sequencer: Sequencer | None = None
        self._totals: Counter[str] = Counter()
        self._refusal: DataError | None = None

    def run(self, examples: Dataset, kind: str) -> DryRunResult:
        """Make the sequences of one dataset; if a run would refuse long examples, they are shown in full length.

        Args:
            examples: Rows of `schema.EXAMPLE`.
            kind: Kind of the rows, from `items.resolve_kind`.
        """
        full = self._tokenize(examples, self._unlimited_sequencer, self._unlimited_config, kind)
        lengths = np.array(full.spool.lengths, np.int64)
        is_too_long = lengths.size and lengths.max() > self.config.max_length
        truncated = self._truncate(examples, kind) if is_too_long else full
        result = truncated or full
        self._totals.update(result.counters)
        counts = _counts(result, lengths, self.config)
        is_packed = truncated is not None and kind not in preference_rows.ANSWERS_BY_KIND
        return replace(result, counts=counts | _packing_counts(result, self.config) if is_packed else counts)

    def length_error(self) -> DataError | None:
        """Return the error that a run would raise about the lengths of all examples so far."""
        if self._refusal or self._truncating_sequencer is None:
            return self._refusal
        self._truncating_sequencer.start()
        self._truncating_sequencer.counts.update(self._totals)
        try:
            self._truncating_sequencer.check_truncated_fraction()
        except DataError as error:
            return error
        return None

    def _truncate(self, examples: Dataset, kind: str) -> DryRunResult | None:
        if self._truncating_sequencer is None:
            self._truncating_sequencer = Sequencer(self._tokenizer, self.config, locations=self.locations)
        try:
            return self._tokenize(examples, self._truncating_sequencer, self.config, kind)
        except DataError as error:  # concerns the length; other errors were raised without the limit
            self._refusal = self._refusal or error
        return None

    def _tokenize(self, examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, kind: str) -> DryRunResult:
        try:
            return self._tokenize_once(examples, sequencer, config, kind)
        except CompiledTemplateMismatchError:
            sequencer.disable_compiled_template()
            return self._tokenize_once(examples, sequencer, config, kind)

    def _tokenize_once(
        self, examples: Dataset, sequencer: Sequencer, config: TokenizeStepConfig, kind: str
    ) -> DryRunResult:
        result, num_items = DryRunResult(), 0
        for _, items in items_module.tokenize_examples(examples, sequencer, config, kind):
            for item in items:
                for sequence in item.sequences:
                    result.spool.add(sequence)
                if num_items < self._num_shown:
                    location = self.locations.get(item.sequences[0].example_id, "")
                    result.shown.extend(item.preview_sequences(location))
                num_items += 1
        return replace(result, counters=dict(sequencer.counts), rendering=sequencer.rendering)


def _counts(result: DryRunResult, lengths: Lengths, config: TokenizeStepConfig) -> dict[str, Any]:
    tokens, trained = sum(result.spool.lengths), result.spool.num_trained
    return {
        "tokens_a_sequence": _quantiles(lengths),
        "max_length": config.max_length,
        "sequences": lengths.size,
        "too_long": int((lengths > config.max_length).sum()),
        "overlong": config.overlong,
        "cut": result.counters["cut"],
        "dropped_for_length": result.counters["dropped"],
        "made_by_split": result.counters["made_by_split"],
        "tokens": tokens,
        "trained_tokens": trained,
        "coverage": round(trained / max(tokens, 1), 4),
        "empty_thoughts": result.counters["empty_thoughts"],
        "empty_thought_tokens": result.counters["empty_thought_tokens"],
        "rendering": result.rendering,
        "rendered_by_template": result.counters["rendered_by_template"],
        "lengths": _histogram(lengths, config.max_length),
    }


def _packing_counts(result: DryRunResult, config: TokenizeStepConfig) -> dict[str, Any]:
    rows = result.spool.rows(config.max_length, config.packing)
    fill = row_writer.fill_rate(rows, sum(result.spool.lengths), config.max_length)
    return {"packed_rows": rows.num_rows, "fill": fill}


def _quantiles(lengths: Lengths) -> dict[str, int]:
    if not lengths.size:
        return {}
    quantiles = np.quantile(lengths, (0, 0.5, 0.95, 1), method="nearest").astype(int).tolist()
    return dict(zip(("shortest", "median", "p95", "longest"), quantiles, strict=True))


def _histogram(lengths: Lengths, max_length: int) -> dict[str, list[int]]:
    """Count sequences by length, with a last bin for those longer than `max_length`; bins include their lower edge."""
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
