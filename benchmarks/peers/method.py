"""Training with one method on real rows, as a job with timed steps whose memory is measured from outside."""

import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks.peers import process
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import Method
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import SFTConfig
from tuneline.data.corpus import Corpus
from tuneline.model import source
from tuneline.train import training_run


def work(arguments: process.Result) -> process.Result:
    """Train a few steps with one method."""
    rows = Corpus.load(Path(arguments["rows"]))
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=Path(arguments["model"])))
    load = LoadStepConfig(max_length=arguments["max_length"], **arguments["load"])
    method: Any = TypeAdapter(Method).validate_python(arguments["method"])
    config = SFTConfig(max_steps=arguments["steps"], lr_scheduler_type="constant", **arguments["train"])
    clock: list[tuple[float, float]] = []
    (Path(arguments["scratch"]) / "began").touch()
    _, report = training_run.train(
        rows,
        base_model,
        tokenizer,
        load,
        method,
        config,
        listeners=(lambda metrics, step: clock.append((process.cpu_seconds(), time.perf_counter())),),
    )
    (Path(arguments["scratch"]) / "ended").touch()
    later = list(pairwise(clock))
    return {
        "cpu": statistics.median(b[0] - a[0] for a, b in later),
        "wall": statistics.median(b[1] - a[1] for a, b in later),
        "tokens": report.summary["tokens"] / report.summary["steps"],
        "parameters": report.summary["parameters"],
        "trainable_parameters": report.summary["trainable_parameters"],
        "first_loss": report.summary["first_loss"],
        "validation_loss": report.summary["validation_loss"],
    }


if __name__ == "__main__":
    process.run_as_job(work)
