"""The result of a cell of the paper's tables: the figures of one run, or the reason of its failure."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.statistics import Interval


class CellScore(BaseModel):
    """A mean over held-out items, with its 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float
    low: float
    high: float
    num_items: int

    @classmethod
    def of(cls, interval: Interval) -> "CellScore":
        """Convert an interval."""
        return cls(mean=interval.mean, low=interval.low, high=interval.high, num_items=interval.num_items)


class CellMeasurement(BaseModel):
    """The figures of a finished run, from its artifacts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_name: str
    steps: dict[str, str]
    """Step -> `ran` or `cached`."""

    parameters: float
    """Number of parameters in the files of the base model."""

    training: dict[str, float]
    """`summary` of the training report."""

    environment: dict[str, str]
    """Versions, device, threads and instruction set of the training process."""

    decisions: dict[str, str]
    """Automatic choices of the training, with reasons."""

    scores: dict[str, dict[str, CellScore]]
    """Metric -> `base`, `model` and their paired `gain`; `rouge_mean` is the mean of ROUGE-1, 2 and L of an item."""

    totals: dict[str, dict[str, float]]
    """`base` and `model` -> `perplexity`, `scored_tokens`, ..."""

    methods: dict[str, str]
    """Metric -> how it is computed."""

    rows: dict[str, int]
    """Examples: `train` and `validation`."""

    contaminated: int
    """Number of held-out items found in the training rows."""


class CellResult(BaseModel):
    """A cell of a table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    task: str
    method: str
    status: Literal["done", "failed", "waiting"]
    reason: str = ""
    """Reason of a failure."""

    recipe: dict[str, Any] = Field(default_factory=dict)
    measured: CellMeasurement | None = None
