"""Training with Tuneline as a job, through the function that the pipeline step calls."""

import shutil
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks.peers import process, steps
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import SFTConfig
from tuneline.data.corpus import Corpus
from tuneline.model import source
from tuneline.train import training_run


def work(arguments: process.Result) -> process.Result:
    """Train one epoch on the rows in order."""
    steps.disable_shuffling()
    rows = Corpus.load(Path(arguments["rows"]))
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=Path(arguments["model"])))
    load = LoadStepConfig(max_length=arguments["max_length"], **arguments["load"])
    method: Any = TypeAdapter(Method).validate_python(arguments["method"])
    config = SFTConfig(num_train_epochs=1, **arguments["train"])
    clock = steps.StepClock()
    checkpoint, report = training_run.train(
        rows, base_model, tokenizer, load, method, config, listeners=(lambda metrics, step: clock.step(),)
    )
    shutil.copy(checkpoint.path / steps.ADAPTER, arguments["adapter"])
    a_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    train = rows.splits["train"].remove_columns("position_ids")
    return {**clock.result(steps.tokens_by_step(train, a_step)), "decisions": report.decisions}


if __name__ == "__main__":
    process.run_as_job(work)
