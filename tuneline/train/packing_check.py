"""Checks before training that examples packed into one row do not attend to each other."""

from itertools import accumulate, pairwise
from typing import Any

from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import preference_rows
from tuneline.model import attention

CHECKED_ROWS, CHECKED_EXAMPLES, CHECKED_TOKENS = 2, 3, 64
"""Number of rows that are checked, of examples per row and of tokens per example."""

TOLERANCE = {"float32": 1e-2, "half": 0.5}
"""Largest difference of logits, relative to their spread, that is attributed to rounding."""


def check_packing_isolation(
    model: Any, rows: Corpus, *, batch_size: int, exact: bool, may_change: bool
) -> tuple[str, str]:
    """Compare the logits of the first packed examples with those of each example alone.

    Args:
        model: The base model.
        rows: Training rows.
        batch_size: Rows per forward pass, which are concatenated.
        exact: The model computes in float32.
        may_change: The attention implementation was chosen automatically, so another one may be tried if it leaks.

    Returns:
        The attention implementation that isolates packed examples, and the result as text.

    Raises:
        VerificationError: Packed examples attend to each other.
    """
    train = rows.splits["train"]
    checked = [_segments(row) for row in train.select(range(min(CHECKED_ROWS, len(train))))]
    batches = [segments for segments in checked if len(segments) > 1]
    kind = str(model.config._attn_implementation)
    if not batches and batch_size == 1:
        return kind, "not packed: each row contains one example"
    tolerance = TOLERANCE["float32" if exact else "half"]
    if may_change:
        kind, leak = attention.set_isolating_attention(model, batches, tolerance=tolerance)
    else:
        leak = attention.check_isolation(model, batches, tolerance=tolerance)
    return kind, f"relative difference {leak:.1e} between packed and alone, with {kind} attention"


def _segments(row: dict[str, Any]) -> list[list[int]]:
    """Return the first tokens of the first examples of a row."""
    packed = preference_rows.flatten_row(row)
    ends = [0, *accumulate(packed["lengths"])]
    ids = packed["input_ids"]
    return [ids[a : min(b, a + CHECKED_TOKENS)] for a, b in pairwise(ends[: CHECKED_EXAMPLES + 1])]
