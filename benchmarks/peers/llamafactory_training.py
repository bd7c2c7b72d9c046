"""Training with LlamaFactory as a job in its own Python environment: its entry point and its data preparation."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.peers import process, steps

PACKAGES = ("llamafactory", "transformers", "peft", "torch")


def work(arguments: process.Result) -> process.Result:
    """Train one epoch on the conversations in order."""
    from llamafactory.train.tuner import run_exp

    steps.disable_shuffling()
    clock, captured = steps.StepClock(), dict[str, Any]()
    output = Path(arguments["scratch"]) / "output"
    run_exp(_arguments(arguments, output), callbacks=[steps.clock_callback(clock), _capture_rows(captured)])
    shutil.copy(output / steps.ADAPTER, arguments["adapter"])
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {**clock.result(steps.tokens_by_step(captured["rows"], captured["a_step"])), "versions": versions}


def _capture_rows(captured: dict[str, Any]) -> Any:
    """Return a callback that stores the prepared rows, so that their tokens can be counted."""
    from transformers import TrainerCallback

    class CaptureRowsCallback(TrainerCallback):  # type: ignore[misc]
        """Stores the rows and the batch size."""

        def on_train_begin(self, args: Any, *_: Any, train_dataloader: Any = None, **__: Any) -> None:
            captured["rows"] = train_dataloader.dataset
            captured["a_step"] = args.per_device_train_batch_size * args.gradient_accumulation_steps

    return CaptureRowsCallback()


def _arguments(arguments: process.Result, output: Path) -> dict[str, Any]:
    """Register the conversations as a dataset, and return the arguments of LlamaFactory."""
    scratch = Path(arguments["scratch"])
    conversations = json.loads(Path(arguments["conversations"]).read_text())
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in conversations]
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
    process.run_as_job(work)
