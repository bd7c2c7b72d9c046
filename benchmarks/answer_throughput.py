"""How many prompts of different lengths a CPU-second answers: our evaluator beside a padded batch of transformers.

    TUNELINE_TEST_DATA=... python -m benchmarks.answer_throughput [--json] [--rows 19] [--dtype bfloat16]

The same articles of XSum in the chat template, the same model (SmolLM2-135M-Instruct), greedy answers of 64 tokens at
most, one thread, each engine in a process of its own, in turns. Imports and loading the model are not timed; our trial
of how the model may be asked is. `same_answers` counts the prompts that both answered alike.
"""

import argparse
import gzip
import json
import os
import sys
import tempfile
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import data_preparation
from benchmarks.peers import process

FILE = "summarization/xsum_train.jsonl.gz"
ENGINES = ("transformers", "ours")


def prompts(model: Path, num_rows: int) -> list[str]:
    """Render the first articles as a question of a chat."""
    from transformers import AutoTokenizer

    path = Path(os.environ.get("TUNELINE_TEST_DATA", "")) / FILE
    if not path.is_file():
        raise SystemExit(f"{path} is missing. Set TUNELINE_TEST_DATA to the folder that holds summarization/.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        articles = [json.loads(line)["document"] for line in islice(lines, num_rows)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    chats = [[{"role": "user", "content": article}] for article in articles]
    return [str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)) for chat in chats]


def measure(told: argparse.Namespace) -> dict[str, Any]:
    """Let both answer, turn by turn."""
    model = data_preparation.model_folder(told.model)
    asked = prompts(model, told.rows)
    found: dict[str, list[process.Result]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        path = Path(folder) / "prompts.json"
        path.write_text(json.dumps({"prompts": asked}, ensure_ascii=False), encoding="utf-8")
        for turn in range(told.repeats):
            for engine in ENGINES:
                print(f"{turn + 1} of {told.repeats}: {engine}", file=sys.stderr)
                arguments = {"model": str(model), "questions": str(path), "engine": engine, "dtype": told.dtype}
                arguments |= {"max_new_tokens": told.max_new_tokens, "batch_size": told.batch_size}
                found[engine].append(process.run("answers", arguments))
    return report(found)


def report(found: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return medians of CPU-seconds, their ratio, and how many answers are equal."""
    seconds = {engine: median(run["cpu_seconds"] for run in runs) for engine, runs in found.items()}
    answers = [runs[0]["answers"] for runs in found.values()]
    return {
        "prompts": len(answers[0]),
        "cpu_seconds": {engine: round(each, 1) for engine, each in seconds.items()},
        "vs_transformers": round(seconds["transformers"] / seconds["ours"], 2),
        "same_answers": sum(a == b for a, b in zip(*answers, strict=True)),
    }


def main() -> None:
    """Measure, and print the figures, a line each or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory; else SmolLM2-135M-Instruct of the catalogue")
    parser.add_argument("--rows", type=int, default=19, help="articles, the first")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    found = measure(told)
    print(json.dumps(found, indent=1) if told.json else "\n".join(f"{name:16}{each}" for name, each in found.items()))


if __name__ == "__main__":
    main()
