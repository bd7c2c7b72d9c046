"""Before training: examples of the first rows that share a row must not see each other."""

from itertools import accumulate, pairwise
from typing import Any

from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import preference_rows
from tuneline.model import attention

CHECKED_ROWS, CHECKED_EXAMPLES, CHECKED_TOKENS = 2, 3, 64
"""How much is compared: rows, examples of each, tokens of each."""

TOLERANCE = {"float32": 1e-2, "half": 0.5}
"""Largest difference of logits, relative to their spread, that is rounding."""


def check_packing_isolation(
    model: Any, rows: Corpus, *, batch_size: int, exact: bool, may_change: bool
) -> tuple[str, str]:
    """Measure on the first rows whether examples that share a row see each other.

    Args:
        model: The base model.
        rows: Training rows.
        batch_size: Rows of one pass, which are laid end to end.
        exact: The model computes in float32.
        may_change: The attention was chosen by itself, so another kind may be tried where this one leaks.

    Returns:
        The kind of attention that is isolated, and the finding in words.

    Raises:
        ProofError: They see each other.
    """
    train = rows.splits["train"]
    shared = [_segments(row) for row in train.select(range(min(CHECKED_ROWS, len(train))))]
    batches = [segments for segments in shared if len(segments) > 1]
    kind = str(model.config._attn_implementation)
    if not batches and batch_size == 1:
        return kind, "each example has a row of its own"
    tolerance = TOLERANCE["float32" if exact else "half"]
    if may_change:
        kind, leak = attention.set_isolating_attention(model, batches, tolerance=tolerance)
    else:
        leak = attention.check_isolation(model, batches, tolerance=tolerance)
    return kind, f"relative difference {leak:.1e} between packed and alone, with {kind} attention"


def _segments(row: dict[str, Any]) -> list[list[int]]:
    """Return the beginnings of the first examples of a row."""
    laid = preference_rows.flatten_row(row)
    ends = [0, *accumulate(laid["lengths"])]
    ids = laid["input_ids"]
    return [ids[a : min(b, a + CHECKED_TOKENS)] for a, b in pairwise(ends[: CHECKED_EXAMPLES + 1])]
