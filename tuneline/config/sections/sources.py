"""Datasets of a recipe: location, row format and number of rows."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tuneline.config.base import MAX_ROWS, Config, LocalPath, Name, RepoFolder, RepoId
from tuneline.errors import did_you_mean

FORMATS = ("alpaca", "kto", "openai", "preference", "sharegpt", "standard", "text")


def _known_format(name: str) -> str:
    if name != "auto" and name not in FORMATS and ":" not in name:
        raise ValueError(
            f"unknown format {name!r}.{did_you_mean(name, FORMATS)} Known: auto, {', '.join(FORMATS)}, or "
            "module:function for a custom format."
        )
    return name


DatasetFormat = Annotated[str, AfterValidator(_known_format)]


class Columns(Config):
    """Column names of a dataset. Omitted columns have the default name of the dataset's format."""

    instruction: str | None = None
    """Instruction (alpaca), or prompt of a preference pair. LlamaFactory: `prompt`."""

    input: str | None = None
    """Input of the instruction. LlamaFactory: `query`."""

    output: str | None = None
    """Answer. LlamaFactory: `response`."""

    system: str | None = None
    """System message."""

    history: str | None = None
    """Previous turns, a list of [instruction, answer]."""

    messages: str | None = None
    """Messages of a conversation."""

    tools: str | None = None
    """JSON schemas of the available tools."""

    chosen: str | None = None
    """Preferred answer of a pair."""

    rejected: str | None = None
    """Other answer of a pair."""

    label: str | None = None
    """Whether a completion is desirable (KTO). LlamaFactory: `kto_tag`."""

    text: str | None = None
    """Text (pretraining)."""


class Tags(Config):
    """Keys and role names inside the messages of a conversation, if they differ from all common spellings."""

    role: str | None = None
    """Key of the role. LlamaFactory: `role_tag`."""

    content: str | None = None
    """Key of the content."""

    user: str | None = None
    """Role name of the user."""

    assistant: str | None = None
    """Role name of the assistant."""

    tool: str | None = None
    """Role name of a tool result. LlamaFactory: `observation_tag`."""

    function: str | None = None
    """Role name of a message that contains a tool call."""

    system: str | None = None
    """Role name of the system message."""


class SourceConfig(Config):
    """One dataset: local files, or a repository on the Hugging Face Hub."""

    name: Name
    """Name of the dataset, which its rows carry through all steps. Listing an identical entry twice doubles its
    rows."""

    path: LocalPath | None = None
    """File, folder or glob pattern like `data/*.jsonl`, relative to the recipe file."""

    hub: RepoId | None = None
    """Dataset repository on the Hub, like `tatsu-lab/alpaca`, instead of `path`."""

    subset: str | None = None
    """Configuration name (subset) of the Hub dataset."""

    split: str = "train"
    """Split of the Hub dataset."""

    revision: str | None = None
    """Commit, tag or branch of the Hub repository. The resolved commit is part of the dataset's identity."""

    folder: RepoFolder | None = None
    """Folder inside the Hub repository."""

    streaming: bool = False
    """Stream rows from the Hub until `max_rows` is reached instead of downloading all files."""

    format: DatasetFormat = "auto"
    """Row format. `auto` detects it from the first rows and logs the result."""

    columns: Columns = Columns()
    """Column names, if they differ from the format's."""

    tags: Tags = Tags()
    """Keys and role names of messages, if they differ from common spellings."""

    max_rows: int | None = Field(None, ge=1, le=MAX_ROWS)
    """Maximum number of rows to use. The remaining rows are counted in the report."""

    sample: Literal["first", "random"] = "first"
    """Rows that `max_rows` selects: the first ones, or a seeded random sample in file order."""

    max_tokens: int | None = Field(None, ge=1, le=MAX_ROWS)
    """Maximum number of training tokens to use. The remaining examples are counted in the report."""

    repeats: int = Field(1, ge=1, le=10_000)
    """Number of times each example appears in the training data."""

    weight: float | None = Field(None, gt=0, le=1e9)
    """Sampling weight in an interleaved mixture, relative to the other datasets."""

    @model_validator(mode="after")
    def _has_one_location(self) -> "SourceConfig":
        if (self.path is None) == (self.hub is None):
            raise ValueError("expected exactly one of path (local files) and hub (a repository). Set one of them.")
        return self

    @model_validator(mode="after")
    def _streaming_is_limited(self) -> "SourceConfig":
        if self.streaming and not (self.hub and self.max_rows):
            raise ValueError("streaming requires hub and max_rows. Set both, or remove streaming.")
        return self


class IngestConfig(Config):
    """Config of step `ingest`: which dataset to read, and how many rows."""

    name: str
    max_rows: int | None = None
    sample: Literal["first", "random"] = "first"


class AlignPolicy(Config):
    """Options of step `align` that all datasets of a recipe share."""

    system: str | None = None
    """System message for examples without one. Null adds none."""

    bad_rows: Literal["refuse", "drop"] = "refuse"
    """Handling of rows that do not match their format: `refuse` fails with the row's location, `drop` skips and counts
    them."""

    max_bad_fraction: float = Field(0.5, ge=0, le=1)
    """Maximum fraction of dropped rows. A larger fraction is an error."""


LossOn = Literal["assistant", "all", "none"]


class AlignConfig(AlignPolicy):
    """Config of step `align`: how the rows of one dataset become examples."""

    format: DatasetFormat = "auto"
    """Row format."""

    columns: Columns = Columns()
    tags: Tags = Tags()

    loss_on: LossOn = "assistant"
    """Roles whose loss the `train: false` key of a message can disable. A key without effect is an error. `all` for
    `tokenize.train_on: all`; `none` for stages that train on entire completions."""

    format_hash: str = ""
    """Hash of a custom format's source, so that a modified function invalidates the cache."""
