"""LlamaFactory's training as a job, under an interpreter that has it: its own entry point, its own preparation."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.peers import process, steps

PACKAGES = ("llamafactory", "transformers", "peft", "torch")


def work(arguments: process.Result) -> process.Result:
    """Train on the conversations in order, once."""
    from llamafactory.train.tuner import run_exp

    steps.read_in_order()
    clock, seen = steps.Clock(), dict[str, Any]()
    output = Path(arguments["scratch"]) / "output"
    run_exp(_told(arguments, output), callbacks=[steps.callback(clock), _rows_kept(seen)])
    shutil.copy(output / steps.ADAPTER, arguments["adapter"])
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {**clock.found(steps.tokens_by_step(seen["rows"], seen["a_step"])), "versions": versions}


def _rows_kept(seen: dict[str, Any]) -> Any:
    """Return a callback that keeps hold of the prepared rows, so that their tokens can be counted."""
    from transformers import TrainerCallback

    class AtTheStart(TrainerCallback):  # type: ignore[misc]
        """Keep the rows."""

        def on_train_begin(self, args: Any, *_: Any, train_dataloader: Any = None, **__: Any) -> None:
            seen["rows"] = train_dataloader.dataset
            seen["a_step"] = args.per_device_train_batch_size * args.gradient_accumulation_steps

    return AtTheStart()


def _told(arguments: process.Result, output: Path) -> dict[str, Any]:
    """Register the conversations as a data set and return LlamaFactory's arguments."""
    scratch = Path(arguments["scratch"])
    said = json.loads(Path(arguments["conversations"]).read_text())
    rows = [{"instruction": asked, "input": "", "output": answer} for asked, answer in said]
    (scratch / "rows.json").write_text(json.dumps(rows))
    (scratch / "dataset_info.json").write_text(json.dumps({"measured": {"file_name": "rows.json"}}))
    return {
        "model_name_or_path": arguments["model"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "measured",
        "dataset_dir": str(scratch),
        "template": arguments["template"],
        "cache_dir": str(scratch / "cache"),
        "output_dir": str(output),
        "overwrite_cache": True,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        **arguments["config"],
    }


if __name__ == "__main__":
    process.job(work)
