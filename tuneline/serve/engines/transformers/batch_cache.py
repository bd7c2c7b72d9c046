"""Key-value cache of a batch whose rows come and go (continuous batching, Yu et al. 2022, "Orca").

All rows end at the same column, so one attention mask with left padding describes every batch and any causal model of
transformers works on it unchanged. A row that joins is copied to the left of the common end. A row that leaves is
replaced by the last row. Buffers are preallocated; a decoding step writes one column and copies nothing else.

    columns   0 ... start ........... end ... capacity
    row 0           [----------------]
    row 1                [-----------]
    row 2                     [------]
"""

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

GROWTH = 1.5
"""Factor by which a full buffer grows."""

MIN_COLUMNS, HEADROOM = 256, 128
"""Columns of a new buffer, and columns left of the first row, so that a longer prompt can join without a copy."""


class BatchLayer(DynamicLayer):
    """One layer: buffers [rows, heads, columns, head_dim], of which `num_rows` rows and `start:end` are in use."""

    def __init__(self, window: "Window") -> None:
        super().__init__()
        self._window = window
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the states of one token per row at the column `end`; return those of all columns in use."""
        window = self._window
        assert self._buffers is not None, "rows join before the first step"
        keys, values = self._buffers
        keys[: window.num_rows, :, window.end] = key_states[:, :, 0]
        values[: window.num_rows, :, window.end] = value_states[:, :, 0]
        columns = slice(window.start, window.end + 1)
        return keys[: window.num_rows, :, columns], values[: window.num_rows, :, columns]

    def get_seq_length(self) -> int:
        """Return the number of columns in use before this step."""
        return self._window.end - self._window.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of key columns and their offset."""
        return self.get_seq_length() + query_length, 0

    def put(self, row: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy the states of a row [heads, tokens, head_dim] to the columns from `start`."""
        if self._buffers is None:
            self._allocate(keys, values)
        for buffer, states in zip(self._buffers or (), (keys, values), strict=True):
            buffer[row, :, start : start + states.shape[1]] = states

    def move_row(self, source: int, target: int) -> None:
        """Copy one row over another."""
        columns = slice(self._window.start, self._window.end)
        for buffer in self._buffers or ():
            buffer[target, :, columns] = buffer[source, :, columns]

    def shift(self, start: int) -> None:
        """Move the columns in use so that they begin at `start`."""
        window = self._window
        for buffer in self._buffers or ():
            columns = buffer[: window.num_rows, :, window.start : window.end].clone()
            buffer[: window.num_rows, :, start : start + columns.shape[2]] = columns

    def grow(self) -> None:
        """Allocate buffers of the capacity of the window, and keep their content."""
        if self._buffers is not None:
            self._allocate(*self._buffers)

    def _allocate(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        rows, columns = self._window.capacity
        old = self._buffers
        new = [
            torch.zeros((rows, each.shape[-3], columns, each.shape[-1]), dtype=each.dtype, device=each.device)
            for each in (keys, values)
        ]
        for before, after in zip(old or (), new, strict=False):
            after[: before.shape[0], :, : before.shape[2]] = before
        self._buffers = new[0], new[1]


class Window:
    """Rows and columns in use, shared by all layers."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.start = self.end = 0
        self.capacity = (1, MIN_COLUMNS)


class BatchCache(DynamicCache):
    """The cache of a batch. `lengths[i]` is the number of tokens of row i."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.window = Window()
        self.layers = [BatchLayer(self.window) for _ in range(num_layers)]
        self.lengths: list[int] = []

    def add(self, prefilled: DynamicCache, row: int = 0, length: int | None = None) -> None:
        """Append a row with the states of a prompt.

        Args:
            prefilled: States [prompts, heads, tokens, head_dim] per layer, padded on the left.
            row: The prompt.
            length: Its number of tokens; by default all.
        """
        window = self.window
        length = length or prefilled.get_seq_length()
        if not self.lengths:
            window.start = window.end = max(length, HEADROOM)
        self._make_room(rows=window.num_rows + 1, columns=max(length, window.end - window.start) + 1)
        if length > window.end:
            self._shift(length - (window.end - window.start))
        start = window.end - length
        for layer, states in zip(self.layers, prefilled.layers, strict=True):
            layer.put(window.num_rows, start, states.keys[row, :, -length:], states.values[row, :, -length:])
        window.num_rows += 1
        self.lengths.append(length)
        self._trim()

    def remove(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self.layers:
                layer.move_row(last, row)
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self.window.num_rows -= 1
        self._trim()

    def begin_step(self) -> None:
        """Make room for one more token per row."""
        window = self.window
        if window.end >= window.capacity[1]:
            self._make_room(window.num_rows, window.end - window.start + 1)

    def end_step(self) -> None:
        """Count the token that each row received."""
        self.window.end += 1
        self.lengths = [length + 1 for length in self.lengths]

    def mask(self, device: torch.device) -> torch.Tensor:
        """Return the attention mask [rows, columns + 1] of the next step."""
        lengths = torch.tensor(self.lengths, device=device)[:, None] + 1
        width = self.window.end - self.window.start + 1
        return (torch.arange(width, 0, -1, device=device)[None] <= lengths).long()

    def positions(self, device: torch.device) -> torch.Tensor:
        """Return the position of the next token of each row [rows, 1]."""
        return torch.tensor(self.lengths, device=device)[:, None]

    def _trim(self) -> None:
        """Leave out columns that no row uses."""
        self.window.start = self.window.end - max(self.lengths, default=0)

    def _make_room(self, rows: int, columns: int) -> None:
        """Make room for rows and columns: at the beginning of the buffers if that is large, else in larger buffers."""
        window = self.window
        have_rows, have_columns = window.capacity
        used = window.end - window.start
        need_columns = max(window.end, columns) + 1
        if need_columns > have_columns and used and window.start >= have_columns // 2:
            self._shift(0)
            need_columns = max(window.end, columns) + 1
        if rows > have_rows or need_columns > have_columns:
            grown_rows = have_rows if rows <= have_rows else max(rows, int(GROWTH * have_rows) + 1)
            grown_columns = have_columns if need_columns <= have_columns else int(GROWTH * need_columns)
            window.capacity = (grown_rows, grown_columns)
            for layer in self.layers:
                layer.grow()

    def _shift(self, start: int) -> None:
        for layer in self.layers:
            layer.shift(start)
        self.window.end += start - self.window.start
        self.window.start = start


def is_batchable(cache: Cache) -> bool:
    """Return whether a cache holds keys and values per token in each layer, and nothing else.

    Layers with a sliding window are included: `BatchCache` keeps all their tokens, and the mask of the model leaves out
    those outside of the window.
    """
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)
