"""`python -m tuneline.runner.measure_run JOBS`: run pipelines and write their measurements; at most one is not cached.

JOBS is a JSON list of [run configuration, output file]. Runs that are fully cached are read one after the other; the
process exits after the first run that computed a step, so that memory and speed are measured in a new process.
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from tuneline import filesystem, signals
from tuneline.config import load
from tuneline.data.corpus import Corpus
from tuneline.errors import TunelineError
from tuneline.evaluation import report as reports
from tuneline.evaluation.report import Report
from tuneline.identity import Manifest
from tuneline.metric_tables import by_metric
from tuneline.runner import start
from tuneline.runner.paper_tables import ERROR_SUFFIX, STARTED_SUFFIX
from tuneline.runner.start import Outcome
from tuneline.tracking.experiments.paper_cell import CellMeasurement, CellScore
from tuneline.train.report import TrainingReport

UNCACHED_STEPS = ("resolve", "register")
"""Steps that always run."""

ROUGE = ("rouge1", "rouge2", "rougeL")
MEANS = {"rouge_mean": ROUGE, "llamafactory_mean": tuple(f"llamafactory_{name}" for name in ROUGE)}
"""Score of the paper: the mean of ROUGE-1, 2 and L, by our metrics or by those of LlamaFactory."""


def measure(path: Path) -> CellMeasurement:
    """Run a pipeline and read its artifacts.

    Raises:
        RunError: The recipe, its data or the stack has an error, or a step failed.
    """
    from zenml.client import Client

    config = load.load(path)
    outcome = start.start(config)
    if not isinstance(outcome, Outcome):
        raise RuntimeError(f"{path}: expected a training without a schedule.")
    steps: dict[str, Any] = Client().get_pipeline_run(outcome.run_name).steps
    stage = config.recipe.stage
    training: TrainingReport = steps["train"].outputs[f"{stage}_training_report"][0].load()
    base_model: Manifest = steps["resolve"].outputs["base_model"][0].load()
    mixture: Corpus = steps["merge"].outputs["mixture"][0].load()
    report = outcome.report
    return CellMeasurement(
        run_name=outcome.run_name,
        steps={step.name: "cached" if step.status == "cached" else "ran" for step in outcome.steps},
        parameters=float(count_parameters(base_model)),
        training=training.summary,
        environment=training.environment,
        decisions=training.decisions,
        scores=scores(report),
        totals=report.totals,
        methods=report.methods,
        rows={split: mixture.splits[split].num_rows for split in ("train", "validation")},
        contaminated=sum(bool(score.contamination) for score in report.model),
    )


def scores(report: Report) -> dict[str, dict[str, CellScore]]:
    """Return every metric of a report, and the paper's means of three metrics per item."""
    results = {
        name: {who: CellScore.of(interval) for who, interval in parts.items()}
        for name, parts in report.metrics().items()
    }
    before, after = by_metric(report.base), by_metric(report.model)
    for name, kinds in MEANS.items():
        if all(kind in after for kind in kinds):
            one, other = (
                {item: fmean(table[kind][item] for kind in kinds) for item in table[kinds[0]]}
                for table in (before, after)
            )
            results[name] = {who: CellScore.of(interval) for who, interval in reports.compare(one, other).items()}
    return results


def count_parameters(base_model: Manifest) -> int:
    """Count the parameters of a model from the headers of its files."""
    from math import prod

    from safetensors import safe_open

    total = 0
    for path in base_model.items[0].paths():
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                total += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def main() -> int:
    """Measure until a step was computed; write the message of an error to a file, with exit code 2."""
    for config, result in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        Path(result).with_suffix(STARTED_SUFFIX).touch()
        try:
            measured = measure(Path(config))
        except TunelineError as error:
            Path(result).with_suffix(ERROR_SUFFIX).write_text(str(error), encoding="utf-8")
            return 2
        filesystem.write_atomic(Path(result), measured.model_dump_json())
        if any(status == "ran" for name, status in measured.steps.items() if name not in UNCACHED_STEPS):
            break
    return 0


if __name__ == "__main__":
    sys.exit(signals.run_command(lambda: sys.exit(main())))
