"""Our data worker as jobs: `whole` from the file to training rows, or `prepare` from records that were read before.

`prepare` is what trainers do with data sets that are loaded: bring rows to one shape, render, tokenize, mask, pack.
`whole` also reads and hashes the file, drops exact copies, holds a part out and looks for it in the rest.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import tiktoken  # noqa: F401  imports are not what is measured

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


def read(path: Path) -> Corpus:
    """Find a file and read its records."""
    found = ingest.locate_sources([SourceConfig(name=path.stem, path=path)])
    return ingest.ingest(found, IngestConfig(name=path.stem))


def shape(records: Corpus) -> Corpus:
    """Bring records to examples; those without an answer are dropped and counted."""
    return align.align(records, AlignConfig(bad_rows="drop"))


def mix(examples: Corpus) -> Corpus:
    """Make a mixture as a recipe's defaults do: copies dropped, a tenth held out, looked for in the rest."""
    return merge.merge([examples], NO_EXAMS, MergeStepConfig())


def unmixed(examples: Corpus) -> Corpus:
    """Hand all examples on as they are, to be trained on."""
    with corpus.RowWriter(schema.EXAMPLE) as none:
        pass
    return Corpus({"train": examples.only(), "validation": none.rows()})


def rows(mixture: Corpus, model: Path, max_length: int) -> Corpus:
    """Make packed training rows."""
    return tokenize.tokenize_pack(mixture, source.tokenizer_manifest(model), TokenizeStepConfig(max_length=max_length))


def measure(arguments: process.Result) -> process.Result:
    """Time the steps of `whole` or `prepare`; the tokenizer is loaded before."""
    path, model, max_length = Path(arguments["data"]), Path(arguments["model"]), arguments["max_length"]
    loaded = load_tokenizer(source.tokenizer_manifest(model))
    clock = process.Clock()
    with mock.patch.object(tokenize, "load_tokenizer", return_value=loaded):
        if arguments["what"] == "whole":
            records = clock.timed("ingest", lambda: read(path))
            examples = clock.timed("align", lambda: shape(records))
            mixture = clock.timed("merge", lambda: mix(examples))
        else:
            records = read(path)
            examples = clock.timed("align", lambda: shape(records))
            mixture = unmixed(examples)
        made = clock.timed("tokenize_pack", lambda: rows(mixture, model, max_length))
    return {"cpu": clock.cpu, "wall": clock.wall, "rows": records.only().num_rows, **_told(made)}


def _told(made: Corpus) -> dict[str, Any]:
    names = ("sequences", "rows", "tokens", "trained_tokens")
    total = {name: sum(made.counts[split][name] for split in tokenize.SPLITS) for name in names}
    return {
        "sequences": total["sequences"],
        "rows_out": total["rows"],
        "tokens": total["tokens"],
        "trained_tokens": total["trained_tokens"],
        "rendering": made.counts["train"]["rendering"],
    }


if __name__ == "__main__":
    process.job(measure)
