"""The input of a prediction: a data file, or an entry of a dataset registry, in any format of the data worker."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuneline.config.datasets import dataset_registry
from tuneline.config.sections.sources import AlignConfig, Columns, IngestConfig, SourceConfig
from tuneline.data.align import prompts
from tuneline.data.align.prompts import PromptRows
from tuneline.data.ingest import ingest
from tuneline.errors import NotFoundError, RecipeError

DATASET_PREFIX = "dataset:"
DEFAULT_REGISTRIES = (Path(dataset_registry.DEFAULT_FILE), Path("configs") / dataset_registry.DEFAULT_FILE)
SOURCE_NAME = "input"


def find_source(text: str, registry: Path | None, changes: dict[str, Any]) -> SourceConfig:
    """Return the dataset of an argument: a path, or `dataset:NAME`.

    Args:
        text: The argument.
        registry: Dataset registry; by default `datasets.yaml` or `configs/datasets.yaml` in the working directory.
        changes: Keys of the source that are set on the command line.

    Raises:
        NotFoundError: The registry has no such entry.
        RecipeError: A value is invalid, or there is no registry.
    """
    if not text.startswith(DATASET_PREFIX):
        return _validated({"name": SOURCE_NAME, "path": Path(text).expanduser().resolve(), **changes})
    name = text.removeprefix(DATASET_PREFIX)
    path = registry or next((path for path in DEFAULT_REGISTRIES if path.is_file()), None)
    if path is None:
        raise RecipeError(f"{text} needs a dataset registry. Give its file: --datasets configs/datasets.yaml")
    entries = dataset_registry.read(path)
    if name in entries.left_out:
        raise RecipeError(f"{name!r} of {path} cannot be used: it {entries.left_out[name]}.")
    if name not in entries.entries:
        raise NotFoundError.among(f"dataset of {path}", name, entries.entries)
    entry = entries.entries[name]
    columns = {**(entry.get("columns") or {}), **changes.get("columns", {})}
    return _validated({"name": name, **entry, **changes, "columns": columns})


def _validated(values: dict[str, Any]) -> SourceConfig:
    try:
        return SourceConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "source"
        raise RecipeError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from None


def parse_columns(assignments: list[str]) -> dict[str, str]:
    """Parse `--columns instruction=question,output=answer`.

    Raises:
        RecipeError: An assignment is incomplete.
        NotFoundError: A name is not that of a column.
    """
    columns: dict[str, str] = {}
    for assignment in (part for text in assignments for part in text.split(",")):
        name, equals, own = (part.strip() for part in assignment.partition("="))
        if not (equals and own):
            raise RecipeError(f"--columns: expected NAME=COLUMN, such as instruction=question, found {assignment!r}.")
        if name not in Columns.model_fields:
            raise NotFoundError.among("column of a format", name, Columns.model_fields)
        columns[name] = own
    return columns


def read_rows(source: SourceConfig, config: AlignConfig, output: Path) -> PromptRows:
    """Read the prompts of a dataset.

    Args:
        source: The dataset.
        config: Policy for bad rows, and the system message.
        output: File of the answers, which must not be part of the input.

    Raises:
        RecipeError: The output is a file of the input.
        SourceError: Files are missing or of an unsupported kind.
        DataError: A row cannot be used, and `bad_rows` is refuse; or too many were dropped.
    """
    manifest = ingest.locate_sources([source])
    if output.resolve() in (path.resolve() for path in manifest.only().paths()):
        raise RecipeError(f"--output: {output} is a file of the input. Choose a file outside of the input.")
    selection = IngestConfig(name=source.name, max_rows=source.max_rows, sample=source.sample)
    records = ingest.ingest(manifest, selection)
    shared = {"format": source.format, "columns": source.columns, "tags": source.tags}
    found = prompts.read_prompts(records, config.model_copy(update=shared))
    return replace(found, counts={**found.counts, "rows": records.counts["rows"]})
