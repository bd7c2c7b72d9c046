"""Translate LlamaFactory's `dataset_info.json` into dataset registry entries.

Reports what LlamaFactory's parser silently ignores: unknown keys, columns and tags that its converter never reads, and
entries without text to train on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tuneline import limits
from tuneline.config.base import MAX_ROWS, Config
from tuneline.config.parsing import located_yaml
from tuneline.config.parsing.located_yaml import Problem
from tuneline.config.sections.sources import SourceConfig
from tuneline.errors import RecipeError

COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
    "messages": "messages",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "label",
}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function",
    "system_tag": "system",
}
MEDIA_COLUMNS = ("images", "videos", "audios")
ALPACA_COLUMNS = ("prompt", "query", "response", "history")
PAIR_COLUMNS = ("chosen", "rejected")
LLAMAFACTORY_KEYS = {"hub": "hf_hub_url", "path": "file_name", "max_rows": "num_samples"}


class EntryColumns(Config):
    """`columns` of a `dataset_info.json` entry."""

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    messages: str | None = None
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None


class EntryTags(Config):
    """`tags` of a `dataset_info.json` entry, with LlamaFactory's defaults."""

    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"


class Entry(Config):
    """One dataset of `dataset_info.json`, as LlamaFactory's parser reads it."""

    hf_hub_url: str | None = None
    ms_hub_url: str | None = None
    om_hub_url: str | None = None
    script_url: str | None = None
    cloud_file_name: str | None = None
    file_name: str | None = None
    file_sha1: str | None = None
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = Field(None, ge=1, le=MAX_ROWS)
    columns: EntryColumns = EntryColumns()
    tags: EntryTags = EntryTags()


@dataclass(frozen=True)
class ImportedDatasets:
    """Translated entries by name, reasons for skipped entries, and notes about translated ones."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)


def read(path: Path) -> ImportedDatasets:
    """Read a `dataset_info.json`. Its paths are relative to its folder.

    Raises:
        RecipeError: The file is invalid. One line per error: `file:line: entry.key: message`.
    """
    document = located_yaml.read(path, description="LlamaFactory's dataset_info.json")
    imported = ImportedDatasets()
    problems: list[Problem] = []
    for name, raw in document.content.items():
        entry, entry_problems = located_yaml.validate(Entry, raw, (name,))
        problems += entry_problems
        if entry and (reason := _unusable(entry)):
            imported.left_out[name] = reason
        elif entry:
            imported.entries[name] = _translate(entry, path.resolve().parent)
            imported.notes[name] = list(_notes(entry, imported.entries[name]))
            problems += _validate(name, entry, imported.entries[name])
    if problems:
        raise RecipeError("\n".join(document.format_errors(problems)))
    return imported


def _validate(name: str, entry: Entry, translated: dict[str, Any]) -> list[Problem]:
    if not (entry.hf_hub_url or entry.file_name):
        return [((name,), "has no location. Add file_name (a file in this folder) or hf_hub_url.")]
    _, problems = located_yaml.validate(SourceConfig, {**translated, "name": "any"}, (name,))
    return [((name, *(LLAMAFACTORY_KEYS.get(str(part), part) for part in key[1:])), text) for key, text in problems]


def _unusable(entry: Entry) -> str:
    """Return why an entry cannot be used, or an empty string."""
    if media := [name for name in MEDIA_COLUMNS if getattr(entry.columns, name)]:
        return f"has {' and '.join(media)}; only text is supported"
    if entry.hf_hub_url or entry.file_name:
        return ""
    other_locations = {
        "ms_hub_url": "is on ModelScope only",
        "om_hub_url": "is on Modelers only",
        "script_url": "is a loading script, which `datasets` no longer runs",
        "cloud_file_name": "is in a cloud bucket",
    }
    reason = next((text for key, text in other_locations.items() if getattr(entry, key)), "")
    return f"{reason}; download it and set file_name" if reason else ""


def _translate(entry: Entry, folder: Path) -> dict[str, Any]:
    location = {"hub": entry.hf_hub_url, "subset": entry.subset, "folder": entry.folder}
    if entry.hf_hub_url and entry.split != "train":
        location["split"] = entry.split
    if not entry.hf_hub_url and entry.file_name:
        location = {"path": str((folder / entry.file_name).resolve())}
    rows = {"max_rows": entry.num_samples, "sample": "random"} if entry.num_samples else {}
    format_keys = {"format": _format(entry), "columns": _columns(entry), "tags": _tags(entry)}
    return {key: value for key, value in (location | format_keys | rows).items() if value}


def _format(entry: Entry) -> str:
    columns = entry.columns
    if columns.kto_tag:
        return "kto"
    if entry.ranking:
        return "preference"
    others = (columns.query, columns.response, columns.history, columns.system, columns.tools)
    if entry.formatting == "alpaca" and columns.prompt and not any(others):
        return "text"
    return entry.formatting


def _columns(entry: Entry) -> dict[str, str]:
    """Translate the columns that LlamaFactory reads and whose names differ from the format's."""
    used = entry.columns.model_dump(include=set(COLUMNS) - set(_unread(entry)), exclude_none=True)
    names = COLUMNS | {"prompt": "text"} if _format(entry) == "text" else COLUMNS
    columns = {names[key]: column for key, column in used.items() if column and column != names[key]}
    if _format(entry) == "sharegpt" and columns.get("messages") == "conversations":
        del columns["messages"]
    return columns


def _tags(entry: Entry) -> dict[str, str]:
    if entry.formatting == "alpaca":
        return {}
    tags, defaults = entry.tags.model_dump(), EntryTags().model_dump()
    return {TAGS[key]: tag for key, tag in tags.items() if tag and tag != defaults[key]}


def _unread(entry: Entry) -> list[str]:
    """Return the columns that are set but never read by LlamaFactory."""
    unread = ["messages"] if entry.formatting == "alpaca" else list(ALPACA_COLUMNS)
    unread += [] if entry.ranking else list(PAIR_COLUMNS)
    return [name for name in unread if getattr(entry.columns, name)]


def _notes(entry: Entry, translated: dict[str, Any]) -> Iterator[str]:
    """Yield notes about how an entry was interpreted, and which keys were dropped."""
    is_file = "path" in translated
    if translated["format"] == "text":
        yield "read as text: it only has the column prompt"
    if entry.ranking and not (entry.columns.chosen and entry.columns.rejected):
        yield "does not set chosen and rejected: its rows must have columns of these names"
    path = Path(translated["path"]) if is_file else None
    if path is not None and not (limits.is_file(path) or limits.is_folder(path)):
        yield f"{entry.file_name} does not exist"
    if unread := _unread(entry):
        yield f"columns {', '.join(unread)}: not used for formatting {entry.formatting}, ranking {entry.ranking}"
    if entry.formatting == "alpaca" and entry.tags != EntryTags():
        yield "tags: not used for formatting alpaca"
    if dropped := [key for key in _dropped_keys(is_file) if key in entry.model_fields_set and getattr(entry, key)]:
        yield f"dropped: {', '.join(dropped)}"


def _dropped_keys(is_file: bool) -> tuple[str, ...]:
    always = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_sha1")
    return (*always, "subset", "split", "folder") if is_file else (*always, "file_name")
