"""LlamaFactory's `dataset_info.json`, translated into descriptions of our own.

What its parser passes over in silence is told here: unknown keys, columns and tags that its converter never reads, and
entries that cannot be trained on as text. Its own names are kept in this module alone.
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
    """`columns` of an entry."""

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
    """`tags` of an entry; the values are the ones it has where none is written."""

    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"


class Entry(Config):
    """One data set of the file, as LlamaFactory's parser reads it."""

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
    """What a file gave: descriptions by name, why others were left out, and what to know about those taken."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)


def read(path: Path) -> ImportedDatasets:
    """Read a `dataset_info.json`; its files are relative to its folder.

    Raises:
        RecipeError: One line for each mistake: `file:line: entry.key: what is wrong, what to do`.
    """
    document = located_yaml.read(path, what="LlamaFactory's dataset_info.json")
    found = ImportedDatasets()
    problems: list[Problem] = []
    for name, raw in document.content.items():
        entry, wrong = located_yaml.validate(Entry, raw, (name,))
        problems += wrong
        if entry and (reason := _unusable(entry)):
            found.left_out[name] = reason
        elif entry:
            found.entries[name] = _describe(entry, path.resolve().parent)
            found.notes[name] = list(_notes(entry, found.entries[name]))
            problems += _check(name, entry, found.entries[name])
    if problems:
        raise RecipeError("\n".join(document.tell(problems)))
    return found


def _check(name: str, entry: Entry, description: dict[str, Any]) -> list[Problem]:
    if not (entry.hf_hub_url or entry.file_name):
        return [((name,), "says nowhere where the data set is. Add file_name (a file beside this one) or hf_hub_url.")]
    _, wrong = located_yaml.validate(SourceConfig, {**description, "name": "any"}, (name,))
    return [((name, *(LLAMAFACTORY_KEYS.get(str(part), part) for part in key[1:])), text) for key, text in wrong]


def _unusable(entry: Entry) -> str:
    """Say why an entry cannot be used, or return an empty string."""
    if media := [name for name in MEDIA_COLUMNS if getattr(entry.columns, name)]:
        return f"has {' and '.join(media)}; only text is trained here"
    if entry.hf_hub_url or entry.file_name:
        return ""
    other_places = {
        "ms_hub_url": "is on ModelScope only",
        "om_hub_url": "is on Modelers only",
        "script_url": "is a loading script, which `datasets` no longer runs",
        "cloud_file_name": "is in a cloud bucket",
    }
    reason = next((text for key, text in other_places.items() if getattr(entry, key)), "")
    return f"{reason}; fetch it and give its file_name" if reason else ""


def _describe(entry: Entry, folder: Path) -> dict[str, Any]:
    place = {"hub": entry.hf_hub_url, "subset": entry.subset, "folder": entry.folder}
    if entry.hf_hub_url and entry.split != "train":
        place["split"] = entry.split
    if not entry.hf_hub_url and entry.file_name:
        place = {"path": str((folder / entry.file_name).resolve())}
    rows = {"max_rows": entry.num_samples, "sample": "random"} if entry.num_samples else {}
    shape = {"format": _format(entry), "columns": _columns(entry), "tags": _tags(entry)}
    return {key: value for key, value in (place | shape | rows).items() if value}


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
    """Translate the columns that are read and are not called what the format calls them."""
    written = entry.columns.model_dump(include=set(COLUMNS) - set(_unread(entry)), exclude_none=True)
    names = COLUMNS | {"prompt": "text"} if _format(entry) == "text" else COLUMNS
    columns = {names[key]: column for key, column in written.items() if column and column != names[key]}
    if _format(entry) == "sharegpt" and columns.get("messages") == "conversations":
        del columns["messages"]
    return columns


def _tags(entry: Entry) -> dict[str, str]:
    if entry.formatting == "alpaca":
        return {}
    written, own = entry.tags.model_dump(), EntryTags().model_dump()
    return {TAGS[key]: word for key, word in written.items() if word and word != own[key]}


def _unread(entry: Entry) -> list[str]:
    """Return the columns that are written and that LlamaFactory never reads."""
    unread = ["messages"] if entry.formatting == "alpaca" else list(ALPACA_COLUMNS)
    unread += [] if entry.ranking else list(PAIR_COLUMNS)
    return [name for name in unread if getattr(entry.columns, name)]


def _notes(entry: Entry, description: dict[str, Any]) -> Iterator[str]:
    """Say what was understood, and what was not kept."""
    is_file = "path" in description
    if description["format"] == "text":
        yield "read as text: it names only a prompt"
    if entry.ranking and not (entry.columns.chosen and entry.columns.rejected):
        yield "names no chosen and rejected: its rows must call them so"
    place = Path(description["path"]) if is_file else None
    if place is not None and not (limits.is_file(place) or limits.is_folder(place)):
        yield f"{entry.file_name} is not there"
    if unread := _unread(entry):
        yield f"columns {', '.join(unread)}: not read where formatting is {entry.formatting}, ranking {entry.ranking}"
    if entry.formatting == "alpaca" and entry.tags != EntryTags():
        yield "tags: alpaca rows have no roles"
    if unkept := [key for key in _unkept(is_file) if key in entry.model_fields_set and getattr(entry, key)]:
        yield f"not kept: {', '.join(unkept)}"


def _unkept(is_file: bool) -> tuple[str, ...]:
    elsewhere = ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_sha1")
    return (*elsewhere, "subset", "split", "folder") if is_file else (*elsewhere, "file_name")
