"""Compares adapters of several trainers: one process, one implementation, the same validation rows."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file

from benchmarks.peers import process
from tuneline.data.corpus import Corpus
from tuneline.model.load import load_model
from tuneline.train import training_run


def work(arguments: process.Result) -> process.Result:
    """Return the mean cross entropy (nats per trained token) of each adapter, and of the base model."""
    rows = Corpus.load(Path(arguments["rows"]))
    base = load_model(Path(arguments["model"]), attention="segment")
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **arguments["lora"])
    model: Any = get_peft_model(base, lora)
    losses = {"none": training_run.mean_loss(model, rows, "validation")}
    for name, path in arguments["adapters"].items():
        result = set_peft_model_state_dict(model, load_file(path))
        assert not result.unexpected_keys, f"{path} contains other layers: {result.unexpected_keys[:3]}"
        losses[name] = training_run.mean_loss(model, rows, "validation")
    return {"losses": losses}


if __name__ == "__main__":
    process.run_as_job(work)
