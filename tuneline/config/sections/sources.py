"""Configs of data sets: where rows are, what shape they have, how much of them is taken."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tuneline.config.base import MAX_ROWS, Config, LocalPath, Name, RepoFolder, RepoId
from tuneline.errors import did_you_mean

FORMATS = ("alpaca", "kto", "openai", "preference", "sharegpt", "standard", "text")


def _known_format(name: str) -> str:
    if name != "auto" and name not in FORMATS and ":" not in name:
        raise ValueError(
            f"unknown format {name!r}.{did_you_mean(name, FORMATS)} Known: auto, {', '.join(FORMATS)}, or "
            "module:function for one of your own."
        )
    return name


DatasetFormat = Annotated[str, AfterValidator(_known_format)]


class Columns(Config):
    """Names of a data set's own columns, where they differ from those of its format (left: the format's)."""

    instruction: str | None = None
    """Question (alpaca), or prompt of a pair. LlamaFactory calls this `prompt`."""

    input: str | None = None
    """What the instruction is about. LlamaFactory calls this `query`."""

    output: str | None = None
    """Answer. LlamaFactory calls this `response`."""

    system: str | None = None
    """System message."""

    history: str | None = None
    """Earlier rounds, a list of [question, answer]."""

    messages: str | None = None
    """Turns of a chat."""

    tools: str | None = None
    """JSON schemas of functions."""

    chosen: str | None = None
    """The preferred answer."""

    rejected: str | None = None
    """The other answer."""

    label: str | None = None
    """Whether an answer is desirable (KTO). LlamaFactory calls this `kto_tag`."""

    text: str | None = None
    """Text to continue (pre-training)."""


class Tags(Config):
    """Words inside the turns of a chat, where they differ from every common spelling."""

    role: str | None = None
    """Key of the speaker. LlamaFactory calls this `role_tag`."""

    content: str | None = None
    """Key of what was said."""

    user: str | None = None
    """What the speaker is called who asks."""

    assistant: str | None = None
    """What the speaker is called who answers."""

    tool: str | None = None
    """What a function's result is called. LlamaFactory calls this `observation_tag`."""

    function: str | None = None
    """What a turn is called that calls a function."""

    system: str | None = None
    """What the system message is called."""


class SourceConfig(Config):
    """One data set: local files, or a repository of the hub."""

    name: Name
    """Name that the rows carry from here on. The same entry written twice counts twice."""

    path: LocalPath | None = None
    """A file, a folder or a pattern like `data/*.jsonl`, relative to the recipe's file."""

    hub: RepoId | None = None
    """Repository on the hub, like `tatsu-lab/alpaca`, instead of `path`."""

    subset: str | None = None
    """Configuration of the hub's data set."""

    split: str = "train"
    """Split of the hub's data set."""

    revision: str | None = None
    """Commit, tag or branch of the hub's repository; the commit found is part of the identity."""

    folder: RepoFolder | None = None
    """Folder inside the hub's repository."""

    streaming: bool = False
    """Take rows from the hub one after the other up to `max_rows`, instead of all files first."""

    format: DatasetFormat = "auto"
    """Shape of the rows; `auto` looks at the first ones and says what it took."""

    columns: Columns = Columns()
    """The data set's own column names."""

    tags: Tags = Tags()
    """The data set's own words for roles."""

    max_rows: int | None = Field(None, ge=1, le=MAX_ROWS)
    """Take so many rows only; the rest are counted."""

    sample: Literal["first", "random"] = "first"
    """Which rows `max_rows` takes: the first, or a seeded draw in the file's order."""

    max_tokens: int | None = Field(None, ge=1, le=MAX_ROWS)
    """Take examples for training until they hold so many tokens; the rest are counted."""

    repeats: int = Field(1, ge=1, le=10_000)
    """How often the training sees each example."""

    weight: float | None = Field(None, gt=0, le=1e9)
    """Share of this data set in an interleaved mixture, relative to the others' weights."""

    @model_validator(mode="after")
    def _one_place(self) -> "SourceConfig":
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (local files) or hub (a repository), and not both.")
        return self

    @model_validator(mode="after")
    def _streams_end(self) -> "SourceConfig":
        if self.streaming and not (self.hub and self.max_rows):
            raise ValueError("streaming is for a hub repository and needs max_rows, so that it ends.")
        return self


class IngestConfig(Config):
    """Which data set to read, and how much of it."""

    name: str
    max_rows: int | None = None
    sample: Literal["first", "random"] = "first"


class AlignPolicy(Config):
    """What all data sets of a recipe share in `align`."""

    system: str | None = None
    """System message for examples that carry none; null leaves them as they are."""

    bad_rows: Literal["refuse", "drop"] = "refuse"
    """What happens to a row that its format cannot read: stop with its place, or leave it out and count it."""

    max_bad_fraction: float = Field(0.5, ge=0, le=1)
    """Where bad rows are dropped: more than this share of them is an error all the same."""


LossOn = Literal["assistant", "all", "none"]


class AlignConfig(AlignPolicy):
    """How the records of one data set become examples."""

    format: DatasetFormat = "auto"
    """Shape of the records."""

    columns: Columns = Columns()
    tags: Tags = Tags()

    loss_on: LossOn = "assistant"
    """Turns whose loss a switch of their own (`train: false`) can change; a switch that changes nothing is refused.
    `all` with `tokenize.train_on: all`; `none` where a stage learns from whole answers."""

    format_hash: str = ""
    """Hash of the source of a format of the user's own, so that a changed function is another step."""
