"""Data sets of the hub, by `datasets`: one split of one commit, copied once to JSON Lines under the state root.

The copy is what a run reads, so a run needs no network once it is there, and the hub's bytes are the run's bytes. A
name is always the hub's: `datasets` alone would read a folder `./owner/name` in the working directory, or, where the
hub fails half-way, its last cached copy of whatever commit. Code from the hub is never run (`datasets` has no way to,
from version 4 on).
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import load_dataset_builder
from huggingface_hub import HfApi

from tuneline import checksums, filesystem, state
from tuneline.config.sections.sources import SourceConfig
from tuneline.data.ingest.readers import arrow
from tuneline.errors import SourceError, TunelineError
from tuneline.identity import Located, digest, file_entries

HUB_PREFIX = "hf://datasets/"
"""What a name begins with for `datasets` to ask the hub alone."""

METADATA_FILE = "about.json"
ROWS_FILE = "rows.jsonl"
REQUEST_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 24 * 3600
"""How long to wait for another process that copies the same rows."""


def locate_hub_dataset(source: SourceConfig) -> Located:
    """Find the local copy of a data set of the hub; make it where it is missing.

    Raises:
        SourceError: The hub is out of reach, has no such rows, or has rows that are not text.
    """
    commit, licence = _commit(source)
    wanted = _wanted(source, commit)
    folder = state.folder("hub") / digest(wanted)[:16]
    with state.lock(f"hub-{folder.name}", LOCK_TIMEOUT_SECONDS):
        if not checksums.is_usable_copy(folder):
            _copy(source, {**wanted, "licence": licence}, folder)
    about = json.loads((folder / METADATA_FILE).read_text())
    where = f"hub {source.hub}@{commit} split {source.split}"
    files = file_entries(folder, [folder / ROWS_FILE])
    return Located(name=source.name, location=str(folder), source=where, licence=about["licence"], files=files)


def _wanted(source: SourceConfig, commit: str) -> dict[str, Any]:
    """Return what decides which rows a copy holds."""
    return {
        "hub": source.hub,
        "commit": commit,
        "subset": source.subset,
        "split": source.split,
        "folder": source.folder,
        "max_rows": source.max_rows if source.streaming else None,
    }


def _commit(source: SourceConfig) -> tuple[str, str]:
    """Return the commit that the revision means, and the licence; a commit with a copy needs no network."""
    named = source.revision or ""
    if re.fullmatch("[0-9a-f]{40}", named) and (state.folder("hub") / digest(_wanted(source, named))[:16]).is_dir():
        return named, "unknown"
    try:
        info = HfApi().dataset_info(str(source.hub), revision=source.revision, timeout=REQUEST_TIMEOUT_SECONDS)
    except Exception as error:
        raise _out_of_reach(source, error) from error
    card = info.card_data.to_dict() if info.card_data else {}
    return str(info.sha), str(card.get("license", "unknown"))


def _copy(source: SourceConfig, about: dict[str, Any], folder: Path) -> None:
    """Write the rows beside their place and move them there as a whole."""
    try:
        with filesystem.atomic_folder(folder) as unfinished:
            with (unfinished / ROWS_FILE).open("wb") as file:
                file.writelines(text + b"\n" for text in _rows(source, about["commit"]))
            (unfinished / METADATA_FILE).write_text(json.dumps(about, indent=1))
            checksums.write_for_copy(unfinished, folder)
    except TunelineError:
        raise
    except Exception as error:
        raise _out_of_reach(source, error) from error


def _rows(source: SourceConfig, commit: str) -> Iterator[bytes]:
    builder = load_dataset_builder(
        f"{HUB_PREFIX}{source.hub}", name=source.subset, revision=commit, data_dir=source.folder
    )
    if builder.hash != commit:
        raise _out_of_reach(source, ConnectionError(f"commit {commit} cannot be read, only a copy of {builder.hash}"))
    features = builder.info.features
    if features is not None:
        arrow.check_columns(features.arrow_schema, str(source.hub))
    if source.streaming:
        rows = builder.as_streaming_dataset(split=source.split).take(source.max_rows)
    else:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=source.split)
    yield from _texts(str(source.hub), rows.with_format("arrow").iter(batch_size=arrow.BATCH_ROWS))


def _texts(name: str, tables: Iterable[pa.Table]) -> Iterator[bytes]:
    number = 1
    for table in tables:
        arrow.check_columns(table.schema, name)
        for batch in table.to_batches():
            yield from arrow.to_json_rows(batch, [f"{name}:{number + i}" for i in range(batch.num_rows)])
            number += batch.num_rows


def _out_of_reach(source: SourceConfig, error: Exception) -> SourceError:
    asked = f"{source.hub}{f' ({source.subset})' if source.subset else ''}, split {source.split}"
    return SourceError(
        f"sources.{source.name}.hub: the hub does not give {asked}, revision {source.revision or 'main'}: "
        f"{_in_short(error)} Correct the names, or give a local copy by `path`; for a repository with restricted "
        f"access set HF_TOKEN.{_copies(source)}"
    )


def _in_short(error: Exception) -> str:
    causes = (error, error.__cause__) if error.__cause__ else (error,)
    text = " ".join(" ".join(f"{cause}" or type(cause).__name__ for cause in causes).split())
    return f"{text[:300].rstrip('.')}."


def _copies(source: SourceConfig) -> str:
    """Name the commits of the same rows that were copied before."""
    read = [state.read_cached_json(about) for about in state.folder("hub").glob(f"*/{METADATA_FILE}")]
    found = [about for about in read if about]
    commits = sorted(each["commit"] for each in found if _wanted(source, each["commit"]).items() <= each.items())
    return f" Copied before, and read without the hub as `revision`: {', '.join(commits)}." if commits else ""
