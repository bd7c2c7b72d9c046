"""Prompts of different lengths answered per CPU-second: our evaluator and a padded batch of transformers.

    TUNELINE_TEST_DATA=... python -m benchmarks.answer_throughput [--json] [--rows 19] [--dtype bfloat16]

Both engines answer the same articles of XSum in the chat template with the same model (SmolLM2-135M-Instruct): greedy
answers of at most 64 tokens, one thread, separate processes, in turns. Imports and model loading are not timed; our
check of which batching the model supports is timed. `same_answers` counts the prompts with equal answers.
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
    """Render the first articles with the chat template."""
    from transformers import AutoTokenizer

    path = Path(os.environ.get("TUNELINE_TEST_DATA", "")) / FILE
    if not path.is_file():
        raise SystemExit(f"{path} is missing. Set TUNELINE_TEST_DATA to the folder that holds summarization/.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        articles = [json.loads(line)["document"] for line in islice(lines, num_rows)]
    tokenizer = AutoTokenizer.from_pretrained(model)
    chats = [[{"role": "user", "content": article}] for article in articles]
    return [str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)) for chat in chats]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both engines, in turns."""
    model = data_preparation.model_folder(args.model)
    rendered = prompts(model, args.rows)
    runs: dict[str, list[process.Result]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        path = Path(folder) / "prompts.json"
        path.write_text(json.dumps({"prompts": rendered}, ensure_ascii=False), encoding="utf-8")
        for turn in range(args.repeats):
            for engine in ENGINES:
                print(f"{turn + 1} of {args.repeats}: {engine}", file=sys.stderr)
                arguments = {"model": str(model), "questions": str(path), "engine": engine, "dtype": args.dtype}
                arguments |= {"max_new_tokens": args.max_new_tokens, "batch_size": args.batch_size}
                runs[engine].append(process.run("answers", arguments))
    return report(runs)


def report(runs_by_engine: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return medians of CPU-seconds, their ratio, and the number of equal answers."""
    seconds = {engine: median(run["cpu_seconds"] for run in runs) for engine, runs in runs_by_engine.items()}
    answers = [runs[0]["answers"] for runs in runs_by_engine.values()]
    return {
        "prompts": len(answers[0]),
        "cpu_seconds": {engine: round(value, 1) for engine, value in seconds.items()},
        "vs_transformers": round(seconds["transformers"] / seconds["ours"], 2),
        "same_answers": sum(a == b for a, b in zip(*answers, strict=True)),
    }


def main() -> None:
    """Run the benchmark and print one line per metric, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct of the catalogue)")
    parser.add_argument("--rows", type=int, default=19, help="number of articles")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args)
    print(
        json.dumps(results, indent=1)
        if args.json
        else "\n".join(f"{name:16}{value}" for name, value in results.items())
    )


if __name__ == "__main__":
    main()
