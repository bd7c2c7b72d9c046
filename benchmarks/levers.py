"""CPU time and memory of each lever of the training step: all on, one off at a time, all off.

    TUNELINE_TEST_DATA=... python -m benchmarks.levers [--json] [--repeats 3] [--dtype float32]

LoRA of rank 8 on all linear layers of SmolLM2-135M, packed rows of real data, one row per step. Each run is a separate
process with one thread, and the variants run in turns. Reported are medians of the CPU seconds per step (without the
first step), and of the peak resident memory less the memory before the model was loaded.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import data_memory, data_preparation, methods
from benchmarks.peers import process
from tuneline.config.training.base import LeversConfig

LORA = {"type": "lora", "r": 8, "lora_alpha": 16}
LEVERS = tuple(LeversConfig.model_fields)
VARIANTS: dict[str, dict[str, bool]] = {
    "all on": {},
    **{f"{name} off": {name: False} for name in LEVERS},
    "all off": dict.fromkeys(LEVERS, False),
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train with every variant, in turns."""
    model = data_preparation.model_folder(args.model)
    runs: dict[str, list[process.Result]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        methods.prepare(model, Path(folder) / "rows", args)
        for turn in range(args.repeats):
            for name, levers in VARIANTS.items():
                print(f"{turn + 1} of {args.repeats}: {name}", file=sys.stderr)
                arguments = {
                    "model": str(model),
                    "rows": str(Path(folder) / "rows"),
                    "max_length": args.max_length,
                    "steps": args.steps,
                    "method": LORA,
                    "load": {"dtype": args.dtype},
                    "train": {"learning_rate": 1e-4, "levers": levers},
                }
                runs[name].append(data_memory.run_with_memory(arguments, "method"))
    return report(runs)


def report(runs_by_variant: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return medians, and ratios to the variant with all levers off."""
    table = {
        name: {
            "cpu_seconds_per_step": statistics.median(run["cpu"] for run in runs),
            "memory_mib": statistics.median(run["resident"] - run["resident_before"] for run in runs) / 2**20,
            "validation_loss": statistics.median(run["validation_loss"] for run in runs),
        }
        for name, runs in runs_by_variant.items()
    }
    all_off = table["all off"]
    for metrics in table.values():
        metrics["cpu_to_plain"] = metrics["cpu_seconds_per_step"] / all_off["cpu_seconds_per_step"]
        metrics["memory_to_plain"] = metrics["memory_mib"] / all_off["memory_mib"]
    return {name: {key: round(value, 4) for key, value in metrics.items()} for name, metrics in table.items()}


def format_results(results: dict[str, Any]) -> str:
    """Return the results as a text table."""
    names = ("cpu_seconds_per_step", "cpu_to_plain", "memory_mib", "memory_to_plain", "validation_loss")
    lines = [f"{'levers':18}" + "".join(f"{name:>20}" for name in names)]
    lines += [f"{variant:18}" + "".join(f"{row[name]:>20}" for name in names) for variant, row in results.items()]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct of the catalogue)")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens per row and per step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args)
    print(json.dumps(results, indent=1) if args.json else format_results(results))


if __name__ == "__main__":
    main()
