"""The base of every config model, the bounds of its numbers, and the kinds of names."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_STEPS = 10**9
MAX_ROWS = 10**12
"""Rows, questions or tokens of a whole data set."""

MAX_TOKENS = 10**7
"""Tokens of one text: ten times the longest context of today's models."""

MAX_BATCH_SIZE = 1 << 16
MAX_SEED = 2**32 - 1
"""Largest seed that NumPy takes."""

MAX_NAME = 128
"""Characters of a name: as part of a step's, a metric's and a file's name it must leave room for the other parts, and
ZenML holds 255, MLflow 250."""

MAX_MODEL_NAME = 200
"""Characters of a registered model's name: MLflow holds 256, ZenML 255, and a file's name 255 bytes."""


MAX_PATH = 4000
"""Bytes of a path: Linux opens none of more than 4,095."""


class Config(BaseModel):
    """A frozen config that refuses unknown keys, NaN and infinite numbers.

    The string below each field is its description: `--help`, the JSON schema and tooltips are all read from it, so it
    is written once and cannot drift.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _usable_path(path: Path) -> Path:
    text = str(path)
    if "\0" in text or len(os.fsencode(path)) > MAX_PATH or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ValueError(f"{text[:80]!r}... is no path: it is too long, or holds a zero byte. Correct it.")
    return path


LocalPath = Annotated[Path, AfterValidator(_usable_path)]
"""A path that a file system can hold."""


def _usable_template(name: str) -> str:
    _usable_path(Path(name))
    return name


TemplateName = Annotated[str, AfterValidator(_usable_template)]
"""A name of the catalogue of chat templates, or the path of a file."""


def _no_parent(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} leads out of the repository. Give a folder inside it.")
    return path


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=MAX_NAME)]
"""A name that becomes part of paths, of steps and of metrics."""

PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=MAX_NAME)]
"""The same without dots."""

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=MAX_MODEL_NAME)]
"""A registered model's name, as both MLflow and ZenML take it."""

RepoId = Annotated[str, Field(pattern=r"^([\w-][\w.-]*/)?[\w-][\w.-]*$", max_length=MAX_NAME)]
"""A repository of the hub, `name` or `owner/name`."""

OwnedRepoId = Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$", max_length=MAX_NAME)]
"""A repository of the hub, `owner/name`."""

RepoFolder = Annotated[str, AfterValidator(_no_parent), Field(max_length=1024)]
"""A folder inside a repository."""

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=MAX_NAME)]
"""The name of a variable of a chat template."""

TemplateArguments = dict[Variable, bool | Annotated[int, Field(ge=-MAX_ROWS, le=MAX_ROWS)] | str]
"""Variables of a chat template."""
