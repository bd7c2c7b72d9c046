"""Data preparation of LlamaFactory as a job in its own Python environment: load, align, tokenize, optionally pack.

Packing is `neat_packing`, with which packed examples do not attend to each other.
"""

import contextlib
import io
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.peers import process

PACKAGES = ("llamafactory", "transformers", "tokenizers", "datasets")


def measure(arguments: process.Result) -> process.Result:
    """Time LlamaFactory on one file; imports, arguments, tokenizer and template are not timed."""
    from llamafactory.data import get_template_and_fix_tokenizer, loader
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model, data, training, _, _ = get_train_args(_arguments(arguments))
    loaded = load_tokenizer(model)
    tokenizer = loaded["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data)
    clock = process.Clock()
    load_dataset = loader.load_dataset
    loader.load_dataset = lambda *args, **kwargs: clock.measure("load", lambda: load_dataset(*args, **kwargs))
    examples = clock.measure(
        "align", lambda: loader._get_merged_dataset(data.dataset, model, data, training, stage="sft")
    )
    with contextlib.redirect_stdout(io.StringIO()):
        rows = clock.measure(
            "tokenize_pack",
            lambda: loader._get_preprocessed_dataset(
                examples, data, training, "sft", template, tokenizer, loaded["processor"]
            ),
        )
    for seconds in (clock.cpu, clock.wall):
        seconds["align"] -= seconds["load"]
    return {"cpu": clock.cpu, "wall": clock.wall, "rows": len(examples), **_count(rows), "versions": _versions()}


def _arguments(arguments: process.Result) -> dict[str, Any]:
    """Register the file as a dataset, and return the arguments of LlamaFactory."""
    scratch, path = Path(arguments["scratch"]), Path(arguments["data"])
    dataset_info = {"measured": {"file_name": path.name}}
    (scratch / path.name).symlink_to(path)
    (scratch / "dataset_info.json").write_text(json.dumps(dataset_info))
    return {
        "model_name_or_path": arguments["model"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "measured",
        "dataset_dir": str(scratch),
        "template": arguments["template"],
        "cutoff_len": arguments["max_length"],
        "packing": arguments["packing"],
        "neat_packing": arguments["packing"],
        "cache_dir": str(scratch / "cache"),
        "output_dir": str(scratch / "output"),
        "overwrite_cache": True,
        "max_steps": 1,
        "report_to": "none",
    }


def _count(rows: Any) -> dict[str, int]:
    """Count rows and tokens; the attention mask is 0 at padding and numbers the examples of a row from 1."""
    sequences = tokens = trained = 0
    for row in rows:
        sequences += max(row["attention_mask"])
        tokens += sum(1 for value in row["attention_mask"] if value)
        trained += sum(1 for label in row["labels"] if label != -100)
    return {"sequences": sequences, "rows_out": len(rows), "tokens": tokens, "trained_tokens": trained}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


if __name__ == "__main__":
    process.run_as_job(measure)
