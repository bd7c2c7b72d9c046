"""Dataset registry: a YAML file that maps names to dataset locations and formats.

An entry has the keys of a source except `name`. A source with `dataset: NAME` takes the entry's values and overrides
them with its own keys. The default file is `datasets.yaml` next to the recipe.
"""

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tuneline import limits
from tuneline.config.datasets import llamafactory_dataset_info
from tuneline.config.parsing import located_yaml
from tuneline.config.parsing.located_yaml import Document, Key, Problem
from tuneline.config.sections.sources import SourceConfig
from tuneline.errors import RecipeError, did_you_mean

DEFAULT_FILE = "datasets.yaml"
"""Registry file used if the recipe does not set `datasets`."""

MAX_NAMES_LISTED = 12
"""Number of known names that a message lists. Larger registries only show the closest name."""

LOCATION_KEYS = ("path", "hub", "subset", "split", "revision", "folder", "streaming")
"""Keys of a dataset's location. A source with its own location only takes the format from the entry."""

DatasetEntry = dict[str, Any]


@dataclass(frozen=True)
class DatasetRegistry:
    """Entries of a registry file, with absolute paths; `left_out` maps unusable entries to the reason."""

    path: Path
    entries: dict[str, DatasetEntry]
    left_out: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> DatasetRegistry:
    """Read and validate a dataset registry: Tuneline's YAML, or LlamaFactory's `dataset_info.json` (by its suffix).

    Raises:
        RecipeError: The file is invalid. One line per error: `file:line: entry.key: message`.
    """
    if path.suffix == ".json":
        return from_dataset_info(path)
    document = located_yaml.read(path, description="a dataset registry, like configs/datasets.yaml")
    if problems := [problem for name, entry in document.content.items() for problem in _validate(name, entry)]:
        raise RecipeError("\n".join(document.format_errors(problems)))
    base = path.resolve().parent
    return DatasetRegistry(path, {name: _absolute(entry, base) for name, entry in document.content.items()})


def from_dataset_info(path: Path) -> DatasetRegistry:
    """Translate LlamaFactory's `dataset_info.json`.

    Raises:
        RecipeError: The file is invalid. One line per error.
    """
    imported = llamafactory_dataset_info.read(path)
    return DatasetRegistry(path, imported.entries, imported.left_out)


def write(registry: DatasetRegistry, path: Path) -> None:
    """Write a registry as YAML, in order, with paths relative to the file."""
    entries = {name: _relative(entry, path.resolve().parent) for name, entry in registry.entries.items()}
    parts = [yaml.safe_dump({name: entry}, sort_keys=False, allow_unicode=True) for name, entry in entries.items()]
    example = next(iter(entries), "NAME")
    header = (
        f"# Dataset registry, imported from {registry.path.name} by `tuneline data import`.\n"
        f"# A recipe next to this file uses an entry by name: `sources: [{{dataset: {example}}}]`.\n"
    )
    skipped = "".join(f"#   {name}: {reason}.\n" for name, reason in registry.left_out.items())
    text = "\n".join([header, *parts, f"# Skipped:\n{skipped}"] if skipped else [header, *parts])
    path.write_text(text, encoding="utf-8")


def expand(document: Document, raw: dict[str, Any]) -> list[str]:
    """Replace `dataset: NAME` in a recipe's sources by the entry's values, in place, and remove the key `datasets`.

    Args:
        document: The recipe's file.
        raw: The recipe in it, with absolute paths.

    Returns:
        Errors, one line each. If there are any, the recipe is not changed.
    """
    value = raw.get("sources")
    sources: list[Any] = value if isinstance(value, list) else []
    references = [i for i, source in enumerate(sources) if isinstance(source, dict) and "dataset" in source]
    if not references and "datasets" not in raw:
        return []
    try:
        registry = _read_registry(document, raw, references)
    except RecipeError as error:
        return str(error).splitlines()
    problems = [
        problem
        for i in references
        for problem in _look_up(registry, sources[i]["dataset"], _reference_key(document, i))
    ]
    if problems:
        return document.format_errors(problems)
    for i in references:
        sources[i] = _merge(sources[i], registry.entries[sources[i]["dataset"]])
    raw.pop("datasets", None)
    return []


def _validate(name: Any, entry: Any) -> list[Problem]:
    if not isinstance(name, str):
        return [((str(name),), f"expected a string as name, but YAML reads it as {name!r}. Put it in quotes.")]
    if not isinstance(entry, dict):
        return [((name,), f"expected a mapping with path or hub, and format, got {entry!r}. Correct it.")]
    if "name" in entry:
        return [((name, "name"), f"unknown key. The entry's name is its key, {name!r}. Remove name.")]
    return located_yaml.validate(SourceConfig, {**entry, "name": "any"}, (name,), _known_keys)[1]


def _known_keys(loc: Key, parent: Any) -> list[str]:
    return [key for key in located_yaml.sibling_fields(SourceConfig, loc, parent) if key != "name"]


def _absolute(entry: DatasetEntry, base: Path) -> DatasetEntry:
    return {**entry, "path": located_yaml.absolute_path(entry["path"], base)} if entry.get("path") else entry


def _relative(entry: DatasetEntry, base: Path) -> DatasetEntry:
    return {**entry, "path": os.path.relpath(entry["path"], base)} if "path" in entry else entry


def _read_registry(document: Document, raw: dict[str, Any], references: list[int]) -> DatasetRegistry:
    """Read the registry that a recipe names, or the default file next to it."""
    value = raw.get("datasets", DEFAULT_FILE)
    key = (*document.root, "datasets") if "datasets" in raw else _reference_key(document, references[0])
    if not isinstance(value, str):
        raise _error(
            document, key, f"expected the path of a file like configs/datasets.yaml, got {value!r}. Correct it."
        )
    folder = document.path.resolve().parent if document.path.is_symlink() else document.path.parent
    path = folder / value
    if limits.is_file(path):
        return read(path)
    if "datasets" in raw:
        raise _error(document, key, f"{limits.why_not_a_file(path)}. Correct the path; it is relative to this file.")
    if kind := limits.special_file_kind(path):
        raise _error(document, key, f"expected a file, but {path} is {kind}. Replace it by a file.")
    text = (
        f"there is no {DEFAULT_FILE} next to this file to look it up in. Set the key `datasets` to the path of a "
        "dataset registry."
    )
    raise _error(document, key, text)


def _error(document: Document, key: Key, text: str) -> RecipeError:
    return RecipeError("\n".join(document.format_errors([(key, text)])))


def _reference_key(document: Document, i: int) -> Key:
    return (*document.root, "sources", i, "dataset")


def _look_up(registry: DatasetRegistry, name: Any, key: Key) -> list[Problem]:
    if not isinstance(name, str):
        return [(key, f"expected the name of an entry in {registry.path}, got {name!r}. Correct it.")]
    if name in registry.entries:
        return []
    if name in registry.left_out:
        return [(key, f"{name!r} of {registry.path} cannot be used: it {registry.left_out[name]}.")]
    known = sorted(registry.entries)
    names = f"Known: {', '.join(known) or 'none'}."
    command = f"{registry.path} has {len(known)} entries; `tuneline data list {registry.path}` lists them."
    options = names if len(known) <= MAX_NAMES_LISTED else command
    return [(key, f"unknown dataset {name!r}.{did_you_mean(name, known)} {options}")]


def _merge(source: dict[str, Any], entry: DatasetEntry) -> dict[str, Any]:
    overrides = {key: value for key, value in source.items() if key != "dataset"}
    has_location = "path" in overrides or "hub" in overrides
    defaults = {key: value for key, value in entry.items() if not (has_location and key in LOCATION_KEYS)}
    return {"name": source["dataset"], **copy.deepcopy(defaults), **overrides}
