"""Memory of PPO with one shared base model, and with a separate model per role.

    python -m benchmarks.ppo_memory [--json] [--repeats 3]

SmolLM2-135M in float32, LoRA of rank 8 on all linear layers, one batch of prompts per step. Each run is a separate
process with one thread, and the layouts run in turns. Reported are medians of the peak resident memory less the memory
before the models were loaded.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import data_memory, data_preparation
from benchmarks.peers import process
from tuneline.config.sections.method import LoraMethod
from tuneline.model import value_head
from tuneline.model.load import load_model
from tuneline.model.methods import families

LAYOUTS = ("shared", "four")


def reward_model(model: Path, folder: Path) -> Path:
    """Write an adapter and a value head in the format of a trained reward model, with random values."""
    torch.manual_seed(0)
    adapted = families["lora"].attach(load_model(model), LoraMethod(type="lora", r=8, lora_alpha=16))
    families["lora"].save(adapted, folder)
    value_head.save_value_head(value_head.build_value_head(adapted, std=0.01), folder)
    return folder


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run PPO steps in both layouts, in turns."""
    model = data_preparation.model_folder(args.model)
    runs: dict[str, list[process.Result]] = {name: [] for name in LAYOUTS}
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        reward = reward_model(model, Path(folder))
        for turn in range(args.repeats):
            for name in LAYOUTS:
                print(f"{turn + 1} of {args.repeats}: {name}", file=sys.stderr)
                arguments = {
                    "layout": name,
                    "model": str(model),
                    "reward": str(reward),
                    "steps": args.steps,
                    "batch": 4,
                    "prompt_tokens": 64,
                    "new_tokens": 24,
                }
                runs[name].append(data_memory.run_with_memory(arguments, "ppo"))
    return report(runs)


def report(runs_by_layout: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return medians in MiB, and the ratio of shared to separate models."""
    memory = {
        name: statistics.median(run["resident"] - run["resident_before"] for run in runs) / 2**20
        for name, runs in runs_by_layout.items()
    }
    rewards = {name: statistics.median(run["mean_reward"] for run in runs) for name, runs in runs_by_layout.items()}
    return {
        **{f"{name}_mib": round(value) for name, value in memory.items()},
        "shared_to_four": round(memory["shared"] / memory["four"], 3),
        **{f"{name}_reward": round(value, 4) for name, value in rewards.items()},
    }


def main() -> None:
    """Run the benchmark and print lines or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct of the catalogue)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    results = measure(args := parser.parse_args())
    print(
        json.dumps(results, indent=1)
        if args.json
        else "\n".join(f"{name:20}{value}" for name, value in results.items())
    )


if __name__ == "__main__":
    main()
