"""Base class of all config models, numeric bounds, and constrained string types."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_STEPS = 10**9
MAX_ROWS = 10**12
"""Rows, questions or tokens of an entire dataset."""

MAX_TOKENS = 10**7
"""Tokens per text: ten times the longest context window of current models."""

MAX_BATCH_SIZE = 1 << 16
MAX_SEED = 2**32 - 1
"""Largest seed that NumPy accepts."""

MAX_NAME = 128
"""Characters in a name. A name becomes part of step, metric and file names, so it must leave room for the other parts;
ZenML allows 255 characters, MLflow 250."""

MAX_MODEL_NAME = 200
"""Characters in a registered model's name. MLflow allows 256, ZenML 255, and file systems allow 255 bytes per file
name."""


MAX_PATH = 4000
"""Bytes in a path. Linux rejects paths longer than 4,095 bytes."""


class Config(BaseModel):
    """Frozen config model that rejects unknown keys, NaN and infinite numbers.

    The string below each field is its description: `--help`, the JSON schema and tooltips all read it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _check_path(path: Path) -> Path:
    text = str(path)
    if "\0" in text or len(os.fsencode(path)) > MAX_PATH or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ValueError(f"{text[:80]!r}... is not a valid path: it is too long, or contains a null byte. Correct it.")
    return path


LocalPath = Annotated[Path, AfterValidator(_check_path)]
"""A path that a file system accepts."""


def _check_template_name(name: str) -> str:
    _check_path(Path(name))
    return name


TemplateName = Annotated[str, AfterValidator(_check_template_name)]
"""Name of a built-in chat template, or path of a template file."""


def _check_inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} is outside the repository. Set a folder inside it.")
    return path


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=MAX_NAME)]
"""A name that becomes part of paths, step names and metric names."""

PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=MAX_NAME)]
"""A `Name` without dots."""

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=MAX_MODEL_NAME)]
"""A registered model's name that both MLflow and ZenML accept."""

RepoId = Annotated[str, Field(pattern=r"^([\w-][\w.-]*/)?[\w-][\w.-]*$", max_length=MAX_NAME)]
"""A repository on the Hugging Face Hub, `name` or `owner/name`."""

OwnedRepoId = Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$", max_length=MAX_NAME)]
"""A repository on the Hugging Face Hub, `owner/name`."""

RepoFolder = Annotated[str, AfterValidator(_check_inside), Field(max_length=1024)]
"""A folder inside a repository."""

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=MAX_NAME)]
"""Name of a chat template variable."""

TemplateArguments = dict[Variable, bool | Annotated[int, Field(ge=-MAX_ROWS, le=MAX_ROWS)] | str]
"""Chat template variables and their values."""
