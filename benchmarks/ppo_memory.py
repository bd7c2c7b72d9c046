"""What PPO needs in memory with one base model in all roles, and with a model for each.

    python -m benchmarks.ppo_memory [--json] [--repeats 3]

SmolLM2-135M in float32, LoRA of rank 8 on all linear layers, a batch of prompts a step; each run a process of its own
with one thread, interleaved; medians of peak memory (resident) less what was there before the models, and CPU seconds.
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
    """Write an adapter and a head, as a reward training leaves them; their numbers do not matter here."""
    torch.manual_seed(0)
    adapted = families["lora"].attach(load_model(model), LoraMethod(type="lora", r=8, lora_alpha=16))
    families["lora"].save(adapted, folder)
    value_head.save_value_head(value_head.build_value_head(adapted, std=0.01), folder)
    return folder


def measure(told: argparse.Namespace) -> dict[str, Any]:
    """Take steps in both layouts, turn by turn."""
    model = data_preparation.model_folder(told.model)
    found: dict[str, list[process.Result]] = {name: [] for name in LAYOUTS}
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        reward = reward_model(model, Path(folder))
        for turn in range(told.repeats):
            for name in LAYOUTS:
                print(f"{turn + 1} of {told.repeats}: {name}", file=sys.stderr)
                arguments = {
                    "layout": name,
                    "model": str(model),
                    "reward": str(reward),
                    "steps": told.steps,
                    "batch": 4,
                    "prompt_tokens": 64,
                    "new_tokens": 24,
                }
                found[name].append(data_memory.watched(arguments, "ppo"))
    return report(found)


def report(found: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return medians in MiB, and how much of four models' memory one needs."""
    memory = {
        name: statistics.median(run["resident"] - run["resident_before"] for run in runs) / 2**20
        for name, runs in found.items()
    }
    rewards = {name: statistics.median(run["mean_reward"] for run in runs) for name, runs in found.items()}
    return {
        **{f"{name}_mib": round(value) for name, value in memory.items()},
        "shared_to_four": round(memory["shared"] / memory["four"], 3),
        **{f"{name}_reward": round(value, 4) for name, value in rewards.items()},
    }


def main() -> None:
    """Measure, and print lines or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory; else SmolLM2-135M-Instruct of the catalogue")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    found = measure(told := parser.parse_args())
    print(json.dumps(found, indent=1) if told.json else "\n".join(f"{name:20}{value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
