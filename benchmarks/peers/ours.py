"""Our data steps as jobs: `whole` from the file to training rows, or `prepare` from loaded records.

`prepare` is the work of trainers on loaded datasets: align, render, tokenize, mask and pack. `whole` also reads and
hashes the file, deduplicates, splits off the validation rows and removes them from the training rows.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import tiktoken  # noqa: F401  imports are not measured

from benchmarks.peers import process
from tuneline.config.sections.data import MergeStepConfig, TokenizeStepConfig
from tuneline.config.sections.sources import AlignConfig, IngestConfig, SourceConfig
from tuneline.data import corpus, schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.ingest import ingest
from tuneline.data.mixture import merge
from tuneline.data.tokenization import tokenize
from tuneline.data.tokenizer.loader import load_tokenizer
from tuneline.identity import Manifest
from tuneline.model import source

NO_EXAMS = Manifest(kind="benchmarks", items=[])


def ingest_file(path: Path) -> Corpus:
    """Locate a file and read its records."""
    files = ingest.locate_sources([SourceConfig(name=path.stem, path=path)])
    return ingest.ingest(files, IngestConfig(name=path.stem))


def align_records(records: Corpus) -> Corpus:
    """Align records to examples; records without an answer are dropped and counted."""
    return align.align(records, AlignConfig(bad_rows="drop"))


def merge_with_defaults(examples: Corpus) -> Corpus:
    """Merge with the defaults of a recipe: deduplication, a validation split of 10% and its decontamination."""
    return merge.merge([examples], NO_EXAMS, MergeStepConfig())


def without_validation(examples: Corpus) -> Corpus:
    """Return all examples as training examples, without a validation split."""
    with corpus.RowWriter(schema.EXAMPLE) as empty:
        pass
    return Corpus({"train": examples.only(), "validation": empty.rows()})


def pack_rows(mixture: Corpus, model: Path, max_length: int) -> Corpus:
    """Tokenize a mixture into packed training rows."""
    return tokenize.tokenize_pack(mixture, source.tokenizer_manifest(model), TokenizeStepConfig(max_length=max_length))


def measure(arguments: process.Result) -> process.Result:
    """Time the steps of `whole` or `prepare`; loading the tokenizer is not timed."""
    path, model, max_length = Path(arguments["data"]), Path(arguments["model"]), arguments["max_length"]
    loaded = load_tokenizer(source.tokenizer_manifest(model))
    clock = process.Clock()
    with mock.patch.object(tokenize, "load_tokenizer", return_value=loaded):
        if arguments["what"] == "whole":
            records = clock.measure("ingest", lambda: ingest_file(path))
            examples = clock.measure("align", lambda: align_records(records))
            mixture = clock.measure("merge", lambda: merge_with_defaults(examples))
        else:
            records = ingest_file(path)
            examples = clock.measure("align", lambda: align_records(records))
            mixture = without_validation(examples)
        rows = clock.measure("tokenize_pack", lambda: pack_rows(mixture, model, max_length))
    return {"cpu": clock.cpu, "wall": clock.wall, "rows": records.only().num_rows, **_counts(rows)}


def _counts(rows: Corpus) -> dict[str, Any]:
    names = ("sequences", "rows", "tokens", "trained_tokens")
    total = {name: sum(rows.counts[split][name] for split in tokenize.SPLITS) for name in names}
    return {
        "sequences": total["sequences"],
        "rows_out": total["rows"],
        "tokens": total["tokens"],
        "trained_tokens": total["trained_tokens"],
        "rendering": rows.counts["train"]["rendering"],
    }


if __name__ == "__main__":
    process.run_as_job(measure)
