"""Descriptions of data sets: where each is and what shape it has, under a name that recipes use.

A file of them, `datasets.yaml` by custom, maps names to descriptions; a description has the keys of a source but
`name`. A source with `dataset: NAME` takes the description's values and overrides them by its own.
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
"""File that a source's `dataset` is looked up in where the recipe names no other."""

MAX_NAMES_LISTED = 12
"""So many names fit into one line of a message; of more only the nearest is told."""

LOCATION_KEYS = ("path", "hub", "subset", "split", "revision", "folder", "streaming")
"""What says where a data set is: a source that gives a place of its own takes only the shape from a description."""

DatasetEntry = dict[str, Any]


@dataclass(frozen=True)
class DatasetRegistry:
    """A file of descriptions, with absolute paths; `left_out` says why an entry of another format cannot be used."""

    path: Path
    entries: dict[str, DatasetEntry]
    left_out: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> DatasetRegistry:
    """Read and check descriptions of our own (YAML), or LlamaFactory's `dataset_info.json` (by the ending `.json`).

    Raises:
        RecipeError: One line for each mistake: `file:line: entry.key: what is wrong, what to do`.
    """
    if path.suffix == ".json":
        return from_dataset_info(path)
    document = located_yaml.read(path, what="descriptions of data sets, like configs/datasets.yaml")
    if problems := [each for name, written in document.content.items() for each in _check(name, written)]:
        raise RecipeError("\n".join(document.tell(problems)))
    base = path.resolve().parent
    return DatasetRegistry(path, {name: _with_place(entry, base) for name, entry in document.content.items()})


def from_dataset_info(path: Path) -> DatasetRegistry:
    """Translate LlamaFactory's `dataset_info.json`.

    Raises:
        RecipeError: One line for each mistake.
    """
    found = llamafactory_dataset_info.read(path)
    return DatasetRegistry(path, found.entries, found.left_out)


def write(found: DatasetRegistry, path: Path) -> None:
    """Write descriptions as a YAML file, in their order, with paths relative to the file."""
    entries = {name: _relative(entry, path.resolve().parent) for name, entry in found.entries.items()}
    parts = [yaml.safe_dump({name: entry}, sort_keys=False, allow_unicode=True) for name, entry in entries.items()]
    head = (
        f"# Descriptions of data sets, imported from {found.path.name} by `tuneline data import`.\n"
        f"# A recipe beside this file uses one by its name: `sources: [{{dataset: {next(iter(entries), 'NAME')}}}]`.\n"
    )
    left_out = "".join(f"#   {name}: {reason}.\n" for name, reason in found.left_out.items())
    text = "\n".join([head, *parts, f"# Left out:\n{left_out}"] if left_out else [head, *parts])
    path.write_text(text, encoding="utf-8")


def expand(document: Document, raw: dict[str, Any]) -> list[str]:
    """Make the sources of a recipe complete that name a description, in place; `datasets` has then done its work.

    Args:
        document: The recipe's file.
        raw: The recipe in it, with absolute paths.

    Returns:
        What is wrong, one line a mistake; the recipe is then left as it was.
    """
    written = raw.get("sources")
    sources: list[Any] = written if isinstance(written, list) else []
    named = [i for i, source in enumerate(sources) if isinstance(source, dict) and "dataset" in source]
    if not named and "datasets" not in raw:
        return []
    try:
        found = _described(document, raw, named)
    except RecipeError as error:
        return str(error).splitlines()
    if problems := [each for i in named for each in _lookup(found, sources[i]["dataset"], _key(document, i))]:
        return document.tell(problems)
    for i in named:
        sources[i] = _complete(sources[i], found.entries[sources[i]["dataset"]])
    raw.pop("datasets", None)
    return []


def _check(name: Any, written: Any) -> list[Problem]:
    if not isinstance(name, str):
        return [((str(name),), f"a name must be text, and YAML reads this one as {name!r}. Put it in quotes.")]
    if not isinstance(written, dict):
        return [((name,), f"expected a mapping with path or hub, and format, got {written!r}.")]
    if "name" in written:
        return [((name, "name"), f"unknown key. The description's name is {name!r}, the key above it.")]
    return located_yaml.validate(SourceConfig, {**written, "name": "any"}, (name,), _known)[1]


def _known(loc: Key, parent: Any) -> list[str]:
    return [key for key in located_yaml.sibling_fields(SourceConfig, loc, parent) if key != "name"]


def _with_place(entry: DatasetEntry, base: Path) -> DatasetEntry:
    return {**entry, "path": located_yaml.absolute_path(entry["path"], base)} if entry.get("path") else entry


def _relative(entry: DatasetEntry, base: Path) -> DatasetEntry:
    return {**entry, "path": os.path.relpath(entry["path"], base)} if "path" in entry else entry


def _described(document: Document, raw: dict[str, Any], named: list[int]) -> DatasetRegistry:
    """Read the file of descriptions that a recipe names, or the one beside it."""
    written = raw.get("datasets", DEFAULT_FILE)
    key = (*document.inside, "datasets") if "datasets" in raw else _key(document, named[0])
    if not isinstance(written, str):
        raise _wrong(document, key, f"expected the path of a file like configs/datasets.yaml, got {written!r}.")
    folder = document.path.resolve().parent if document.path.is_symlink() else document.path.parent
    path = folder / written
    if limits.is_file(path):
        return read(path)
    if "datasets" in raw:
        raise _wrong(document, key, f"{limits.why_not_a_file(path)}. Correct the path; it is relative to this file.")
    if odd := limits.special_file_kind(path):
        raise _wrong(document, key, f"{path} is {odd}, not a file. Write the descriptions into a file.")
    text = f"there is no {DEFAULT_FILE} beside this file to look it up in. Name a file of descriptions by the key `datasets`."
    raise _wrong(document, key, text)


def _wrong(document: Document, key: Key, text: str) -> RecipeError:
    return RecipeError("\n".join(document.tell([(key, text)])))


def _key(document: Document, i: int) -> Key:
    return (*document.inside, "sources", i, "dataset")


def _lookup(found: DatasetRegistry, name: Any, key: Key) -> list[Problem]:
    if not isinstance(name, str):
        return [(key, f"expected the name of a description in {found.path}, got {name!r}.")]
    if name in found.entries:
        return []
    if name in found.left_out:
        return [(key, f"{name!r} of {found.path} cannot be used: it {found.left_out[name]}.")]
    known = sorted(found.entries)
    few = f" Known: {', '.join(known) or 'none'}."
    many = f" {found.path} describes {len(known)}; `tuneline data list {found.path}` shows them."
    return [
        (key, f"unknown dataset {name!r}.{did_you_mean(name, known)}{few if len(known) <= MAX_NAMES_LISTED else many}")
    ]


def _complete(source: dict[str, Any], description: DatasetEntry) -> dict[str, Any]:
    own = {key: value for key, value in source.items() if key != "dataset"}
    has_place = "path" in own or "hub" in own
    taken = {key: value for key, value in description.items() if not (has_place and key in LOCATION_KEYS)}
    return {"name": source["dataset"], **copy.deepcopy(taken), **own}
