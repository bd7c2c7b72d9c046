"""Tests whether the demo passes the gate with every seed.

    python -m benchmarks.demo_seeds --seeds 5

Trains configs/demo.yaml once per seed, evaluates each model on the validation rows and the exam, and compares it with
the base model in the gate, as with an empty registry. Uses the active state root, so cached answers are reused.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from tuneline.config import load
from tuneline.config.recipe import Recipe
from tuneline.data import prepare
from tuneline.data.benchmarks import exam_files
from tuneline.data.tokenization import tokenize
from tuneline.evaluation import model_under_test, report, score
from tuneline.model import merge as merging
from tuneline.model import resolve
from tuneline.tracking import gate
from tuneline.train import training_run


def measure(recipe: Recipe, seeds: list[int]) -> list[dict[str, object]]:
    """Train and evaluate once per seed."""
    exams = exam_files.locate_exams(recipe.exams)
    tokenizer, base_model, _ = resolve.resolve_inputs(recipe.for_resolve())
    mixture = prepare.build_mixture(recipe)
    rows = tokenize.tokenize_pack(mixture, tokenizer, recipe.for_tokenize())
    inputs = (tokenizer, mixture.splits["validation"], exams, recipe.for_evaluate())
    base = model_under_test.base_model(base_model, tokenizer, recipe.for_evaluate())
    before = report.by_metric(score.score_all(base, *inputs))
    results = []
    for seed in seeds:
        start = time.monotonic()
        config = recipe.train.model_copy(update={"seed": seed})
        checkpoint, training = training_run.train(rows, base_model, tokenizer, recipe.for_load(), recipe.method, config)
        model = merging.merge_adapter(checkpoint, base_model, tokenizer, rows, recipe.for_load(), recipe.merge_adapter)
        candidate = model_under_test.EvaluatedModel(f"seed {seed}", model.path, model.content_hash())
        after = report.by_metric(score.score_all(candidate, *inputs))
        findings = gate.evaluate(after, before, "the base model", recipe.registry.gate)
        gains = {name: report.compare(before[name], after[name])["gain"].mean for name in after}
        results.append(
            {
                "seed": seed,
                "passed": not gate.failed_findings(findings, recipe.registry.gate),
                "low": findings[0].low,
                **{f"gain_{name}": value for name, value in gains.items()},
                "validation_loss": training.summary["validation_loss"],
                "training_seconds": training.summary["seconds"],
                "seconds": time.monotonic() - start,
            }
        )
        for folder in (checkpoint.path, model.path):
            shutil.rmtree(folder)
    return results


def main() -> None:
    """Print one line per seed, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = measure(load.load(arguments.config).recipe, list(range(arguments.seeds)))
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        print(
            "  ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items()
            )
        )


if __name__ == "__main__":
    main()
