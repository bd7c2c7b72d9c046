"""Memory and time of full, freeze, GaLore, LoRA and QLoRA training on the same model.

    TUNELINE_TEST_DATA=... python -m benchmarks.methods [--json] [--repeats 3]

Each method trains on the same packed rows of real data in a separate process with one thread; methods run in turns, and
medians are reported. Memory is the peak resident memory of the process, sampled from outside, less the memory before
the model was loaded; frozen weights count, although they are pages of a mapped file. Bytes per parameter refer to the
parameters of the base model. Compare with the efficiency table of the paper (Zheng et al. 2024, arXiv:2403.13372),
which was measured on a GPU with bf16 and 8-bit AdamW.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import data_memory, data_preparation
from benchmarks.peers import ours, process
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.model import source

RANK = 32
NUM_EXAMPLES = 500
LORA = {"type": "lora", "r": RANK, "lora_alpha": 2 * RANK}
GALORE = {
    "optim": "galore_adamw",
    "optim_args": f"rank={RANK},update_proj_gap=200,scale=2.0",
    "optim_target_modules": ["self_attn", "mlp"],
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": {"type": "full"}, "train": {"learning_rate": 1e-5}},
    "freeze": {"method": {"type": "freeze", "layers": 3}, "train": {"learning_rate": 1e-5}},
    "galore": {"method": {"type": "full"}, "train": {"learning_rate": 1e-5, **GALORE}},
    "lora": {"method": LORA, "train": {"learning_rate": 1e-4}},
    "qlora": {"method": LORA, "train": {"learning_rate": 1e-4}, "load": {"quantization": {"type": "bnb_4bit"}}},
}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train with every method, in turns."""
    model = data_preparation.model_folder(args.model)
    runs: dict[str, list[process.Result]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        prepare(model, Path(folder) / "rows", args)
        for turn in range(args.repeats):
            for name, options in METHODS.items():
                print(f"{turn + 1} of {args.repeats}: {name}", file=sys.stderr)
                arguments = {
                    "model": str(model),
                    "rows": str(Path(folder) / "rows"),
                    "max_length": args.max_length,
                    "steps": args.steps,
                    **options,
                    "load": {
                        "dtype": "float32",
                        "gradient_checkpointing": args.checkpointing,
                        **options.get("load", {}),
                    },
                }
                runs[name].append(data_memory.run_with_memory(arguments, "method"))
    return report(runs)


def prepare(model: Path, folder: Path, args: argparse.Namespace) -> None:
    """Write the rows of all methods: one row per step, and one validation row."""
    mixture = ours.merge_with_defaults(ours.align_records(ours.ingest_file(data_preparation.data_file())))
    train = mixture.splits["train"]
    corpus = Corpus({"train": train.select(range(NUM_EXAMPLES)), "validation": train.select(range(0))})
    config = TokenizeStepConfig(max_length=args.max_length, overlong="drop")
    packed = tokenize.tokenize_pack(corpus, source.tokenizer_manifest(model), config)
    rows = packed.splits["train"]
    splits = {"train": rows.select(range(args.steps)), "validation": rows.select(range(args.steps, args.steps + 1))}
    folder.mkdir()
    Corpus(splits, identity=packed.identity).save(folder)


def report(runs_by_method: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return medians, and ratios to full training."""
    base = runs_by_method["full"][0]["parameters"]
    table = {name: _medians(runs, base) for name, runs in runs_by_method.items()}
    for metrics in table.values():
        metrics["memory_to_full"] = round(metrics["memory_mib"] / table["full"]["memory_mib"], 3)
        metrics["cpu_to_full"] = round(metrics["cpu_seconds_per_step"] / table["full"]["cpu_seconds_per_step"], 3)
    return {"rank": RANK, "methods": table}


def _medians(runs: list[process.Result], base: float) -> dict[str, Any]:
    memory = statistics.median(run["resident"] - run["resident_before"] for run in runs)
    return {
        "memory_mib": round(memory / 2**20, 1),
        "bytes_per_parameter": round(memory / base, 2),
        "cpu_seconds_per_step": round(statistics.median(run["cpu"] for run in runs), 2),
        "tokens_per_cpu_second": round(statistics.median(run["tokens"] / run["cpu"] for run in runs), 1),
        "trainable_parameters": int(runs[0]["trainable_parameters"]),
        "first_loss": round(runs[0]["first_loss"], 4),
        "validation_loss": round(runs[0]["validation_loss"], 4),
    }


def format_results(results: dict[str, Any]) -> str:
    """Return the results as a text table."""
    names = ("memory_mib", "memory_to_full", "bytes_per_parameter", "cpu_seconds_per_step", "cpu_to_full")
    lines = [f"{'method':10}" + "".join(f"{name:>22}" for name in names)]
    for method, metrics in results["methods"].items():
        lines.append(f"{method:10}" + "".join(f"{metrics[name]:>22}" for name in names))
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct of the catalogue)")
    parser.add_argument("--max-length", type=int, default=512, help="tokens per row and per step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpointing", choices=("none", "full", "selective"), default="none")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args)
    print(json.dumps(results, indent=1) if args.json else format_results(results))


if __name__ == "__main__":
    main()
