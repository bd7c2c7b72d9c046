"""LlamaFactory's data path as a job, under an interpreter that has it: load, align, tokenize, and pack where asked.

Its packing is `neat_packing`, the kind in which packed examples do not see each other.
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
    """Time LlamaFactory on one file; imports, arguments, tokenizer and template are made ready before."""
    from llamafactory.data import get_template_and_fix_tokenizer, loader
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model, data, training, _, _ = get_train_args(_told(arguments))
    loaded = load_tokenizer(model)
    tokenizer = loaded["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data)
    clock = process.Clock()
    read = loader.load_dataset
    loader.load_dataset = lambda *args, **kwargs: clock.timed("load", lambda: read(*args, **kwargs))
    examples = clock.timed(
        "align", lambda: loader._get_merged_dataset(data.dataset, model, data, training, stage="sft")
    )
    with contextlib.redirect_stdout(io.StringIO()):
        made = clock.timed(
            "tokenize_pack",
            lambda: loader._get_preprocessed_dataset(
                examples, data, training, "sft", template, tokenizer, loaded["processor"]
            ),
        )
    for seconds in (clock.cpu, clock.wall):
        seconds["align"] -= seconds["load"]
    return {"cpu": clock.cpu, "wall": clock.wall, "rows": len(examples), **_counted(made), "versions": _versions()}


def _told(arguments: process.Result) -> dict[str, Any]:
    """Register the file as a data set and return LlamaFactory's arguments."""
    scratch, path = Path(arguments["scratch"]), Path(arguments["data"])
    described = {"measured": {"file_name": path.name}}
    (scratch / path.name).symlink_to(path)
    (scratch / "dataset_info.json").write_text(json.dumps(described))
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


def _counted(made: Any) -> dict[str, int]:
    """Count what came out; padding is 0 in the attention mask, other examples of a row are 2, 3 and so on."""
    sequences = tokens = trained = 0
    for row in made:
        sequences += max(row["attention_mask"])
        tokens += sum(1 for mark in row["attention_mask"] if mark)
        trained += sum(1 for label in row["labels"] if label != -100)
    return {"sequences": sequences, "rows_out": len(made), "tokens": tokens, "trained_tokens": trained}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in PACKAGES}


if __name__ == "__main__":
    process.job(measure)
