"""Configs of the data steps, one per step, so that a step's cache sees only its own knobs."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tuneline.config.base import Config

FEWEST_HELD_OUT = 5
"""With fewer items no interval can be believed, whatever the method."""

DatasetFormat = Literal["alpaca", "openai", "sharegpt"]


class SourceConfig(Config):
    """One data set: rows in a local file."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name that the rows carry from here on."""

    path: Path
    """A `.jsonl` or `.json` file, plain or `.gz`, relative to the recipe's file."""

    format: DatasetFormat
    """Shape of the rows."""

    max_rows: int | None = Field(None, ge=1)
    """Take the first rows only; the rest are counted."""


class ExamConfig(Config):
    """A multiple-choice exam in MMLU's format: `dev/` and `test/` with one CSV a subject, without header."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Prefix of the exam's metrics."""

    path: Path
    """Folder with `dev/<subject>.csv` (the shots) and `test/<subject>.csv`, relative to the recipe's file."""

    num_shots: int = Field(5, ge=0)
    """Solved questions in front of each question, the first of `dev/`."""


class IngestConfig(Config):
    """Which data set to read, and how much of it."""

    name: str
    max_rows: int | None = None


class AlignConfig(Config):
    """How records become examples."""

    format: DatasetFormat
    """Shape of the records."""

    system: str | None = None
    """System message for examples that carry none; null leaves them as they are."""

    bad_rows: Literal["refuse", "drop"] = "refuse"
    """What happens to a row that its format cannot read: stop with its place, or leave it out and count it."""


class AlignPolicy(Config):
    """What all data sets of a recipe share in `align`."""

    system: str | None = None
    """System message for examples that carry none; null leaves them as they are."""

    bad_rows: Literal["refuse", "drop"] = "refuse"
    """What happens to a row that its format cannot read: stop with its place, or leave it out and count it."""


class MergeConfig(Config):
    """How data sets become one mixture."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of examples held out. The side follows from an example's content: it stays when others come and go."""

    split_seed: int = 0
    """Another seed holds out other examples."""


class TokenizeConfig(Config):
    """How examples become training rows."""

    max_length: int = Field(2048, ge=8)
    """Tokens a row. LlamaFactory calls this `cutoff_len`."""

    packing: bool = True
    """Put several examples into one row, each blind to the others."""

    overlong: Literal["refuse", "drop"] = "refuse"
    """What happens to an example longer than `max_length`: stop, or leave it out and count it."""

    train_on: Literal["assistant", "last_assistant"] = "assistant"
    """Which turns carry loss: all of the assistant's, or the last one."""


class DataSection(Config):
    """Base of recipes: data sets and exams have names of their own."""

    sources: list[SourceConfig] = Field(min_length=1)
    """The data sets, merged in this order."""

    exams: list[ExamConfig] = Field(default_factory=list)
    """Multiple-choice exams, taken before and after."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> "DataSection":
        for key, names in (("sources", [s.name for s in self.sources]), ("exams", [e.name for e in self.exams])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key} holds the name {twice[0]!r} twice. Give each entry a name of its own.")
        return self
