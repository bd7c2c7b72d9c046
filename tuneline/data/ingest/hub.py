"""Hub datasets, read with `datasets`: one split at one commit, copied once to JSON Lines under the state root.

Runs read the copy, so they need no network once it exists, and the rows are those of that commit. A name always means
the Hub: `datasets` alone would read a folder `./owner/name` in the working directory or, if a download fails, its last
cached copy of any commit. Code from the Hub never runs (`datasets` does not support it since version 4).
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
"""Prefix of a name that makes `datasets` read from the Hub only."""

METADATA_FILE = "about.json"
ROWS_FILE = "rows.jsonl"
REQUEST_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 24 * 3600
"""How long to wait for another process that copies the same rows."""


def locate_hub_dataset(source: SourceConfig) -> Located:
    """Locate the local copy of a Hub dataset; download it if it is missing.

    Raises:
        SourceError: The Hub cannot be reached, has no such rows, or has rows that are not text.
    """
    commit, licence = _resolve_commit(source)
    key = _copy_key(source, commit)
    folder = state.folder("hub") / digest(key)[:16]
    with state.lock(f"hub-{folder.name}", LOCK_TIMEOUT_SECONDS):
        if not checksums.is_usable_copy(folder):
            _copy(source, {**key, "licence": licence}, folder)
    metadata = json.loads((folder / METADATA_FILE).read_text())
    origin = f"hub {source.hub}@{commit} split {source.split}"
    files = file_entries(folder, [folder / ROWS_FILE])
    return Located(name=source.name, location=str(folder), source=origin, licence=metadata["licence"], files=files)


def _copy_key(source: SourceConfig, commit: str) -> dict[str, Any]:
    """Return the settings that determine the rows of a copy."""
    return {
        "hub": source.hub,
        "commit": commit,
        "subset": source.subset,
        "split": source.split,
        "folder": source.folder,
        "max_rows": source.max_rows if source.streaming else None,
    }


def _resolve_commit(source: SourceConfig) -> tuple[str, str]:
    """Return the commit of the revision, and the license. A commit with a local copy needs no network."""
    revision = source.revision or ""
    folder = state.folder("hub") / digest(_copy_key(source, revision))[:16]
    if re.fullmatch("[0-9a-f]{40}", revision) and folder.is_dir():
        return revision, "unknown"
    try:
        info = HfApi().dataset_info(str(source.hub), revision=source.revision, timeout=REQUEST_TIMEOUT_SECONDS)
    except Exception as error:
        raise _download_error(source, error) from error
    card = info.card_data.to_dict() if info.card_data else {}
    return str(info.sha), str(card.get("license", "unknown"))


def _copy(source: SourceConfig, metadata: dict[str, Any], folder: Path) -> None:
    """Write the rows to a temporary folder and move it into place."""
    try:
        with filesystem.atomic_folder(folder) as unfinished:
            with (unfinished / ROWS_FILE).open("wb") as file:
                file.writelines(text + b"\n" for text in _rows(source, metadata["commit"]))
            (unfinished / METADATA_FILE).write_text(json.dumps(metadata, indent=1))
            checksums.write_for_copy(unfinished, folder)
    except TunelineError:
        raise
    except Exception as error:
        raise _download_error(source, error) from error


def _rows(source: SourceConfig, commit: str) -> Iterator[bytes]:
    builder = load_dataset_builder(
        f"{HUB_PREFIX}{source.hub}", name=source.subset, revision=commit, data_dir=source.folder
    )
    if builder.hash != commit:
        raise _download_error(source, ConnectionError(f"got a cached copy of commit {builder.hash}, not of {commit}"))
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


def _download_error(source: SourceConfig, error: Exception) -> SourceError:
    split = f"{source.hub}{f' ({source.subset})' if source.subset else ''}, split {source.split}"
    return SourceError(
        f"sources.{source.name}.hub: {split}, revision {source.revision or 'main'}, could not be downloaded from the "
        f"Hub: {_summarize(error)} Correct the names, or set `path` to a local copy; for a repository with restricted "
        f"access, set HF_TOKEN.{_local_copies(source)}"
    )


def _summarize(error: Exception) -> str:
    causes = (error, error.__cause__) if error.__cause__ else (error,)
    text = " ".join(" ".join(f"{cause}" or type(cause).__name__ for cause in causes).split())
    return f"{text[:300].rstrip('.')}."


def _local_copies(source: SourceConfig) -> str:
    """Return a hint with the commits of the same rows that have a local copy."""
    files = [state.read_cached_json(path) for path in state.folder("hub").glob(f"*/{METADATA_FILE}")]
    copies = [metadata for metadata in files if metadata]
    commits = sorted(copy["commit"] for copy in copies if _copy_key(source, copy["commit"]).items() <= copy.items())
    return f" Commits with a local copy, which `revision` can name: {', '.join(commits)}." if commits else ""
