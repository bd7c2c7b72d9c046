"""Tokens per CPU-second of LoRA training: Tuneline, trl and LlamaFactory, with defaults and fastest settings.

    TUNELINE_TEST_DATA=... python -m benchmarks.training_throughput [--json] [--llamafactory .../bin/python]

All contenders train SmolLM2-135M-Instruct with LoRA (rank 8, all linear layers) for one epoch on the same conversations
of alpaca_en_demo in the same order: the same number per optimizer step, none longer than a row, AdamW with a constant
learning rate. Each run is a separate process with one thread; contenders run in turns, and medians are compared. CPU
seconds are user and system time from the end of the first step to the end of the last. Padding tokens are not counted.
Contenders that are much slower than Tuneline run once.

The fastest setting of a peer is determined by a short race of settings (`--no-race` uses those of docs/log.md). Peers
with packing see the rows in another order. `loss_difference` compares the adapters on validation rows in one process.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import data_preparation
from benchmarks.peers import ours, process
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.data import schema
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.model import source

FILE = "llamafactory/alpaca_en_demo.json"
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
TRAIN = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "seed": 0}
HELD_OUT = 16
SLOW_FACTOR = 5
"""Contenders that are slower than Tuneline by this factor in the first round run only once."""

ROWS_PER_STEP = 8
"""As in the example of LlamaFactory, and the default of trl."""

LENGTH_STEP = 64
"""Packed rows are longer than the average by one to two of these steps, so that one row per pass holds all tokens;
LlamaFactory pads to multiples of 8, so its rows must have such a length."""

TARGETS = {
    "vs_trl": 5.0,
    "vs_trl_best": 2.0,
    "vs_llamafactory": 2.8,
    "vs_llamafactory_best": 1.6,
    "floor_share": 0.6,
    "loss_difference": 0.01,
    "peak_memory_ratio": 1.0,
}
UPPER_BOUNDS = ("loss_difference", "peak_memory_ratio")
OURS, OURS_RECOMPUTING = "tuneline", "tuneline, recomputing"
TRL, TRL_BEST = "trl as it comes", "trl at its fastest"
LLAMAFACTORY, LLAMAFACTORY_BEST = "llamafactory's example", "llamafactory at its fastest"
IN_FLOAT32 = "{}, in float32"
"""Both default to bfloat16, which is slow on a CPU without hardware support for it."""

RATIOS = {
    "vs_trl": (OURS, TRL),
    "vs_trl_best": (OURS, TRL_BEST),
    "vs_trl_in_float32": (OURS, IN_FLOAT32.format(TRL)),
    "vs_llamafactory": (OURS_RECOMPUTING, LLAMAFACTORY),
    "vs_llamafactory_in_float32": (OURS_RECOMPUTING, IN_FLOAT32.format(LLAMAFACTORY)),
    "vs_llamafactory_best": (OURS, LLAMAFACTORY_BEST),
}
NOT_MEASURED = "not measured: --without, or no --llamafactory and no TUNELINE_LLAMAFACTORY_PYTHON"


@dataclass(frozen=True)
class Contender:
    """A job, its options, and its interpreter."""

    job: str
    options: dict[str, Any]
    python: str = sys.executable


@dataclass
class Benchmark:
    """Rows on disk, and the options of all contenders."""

    args: argparse.Namespace
    folder: Path
    model: Path = field(init=False)
    tokens: int = 0
    trained_tokens: int = 0

    def __post_init__(self) -> None:
        self.model = data_preparation.model_folder(self.args.model)

    @property
    def llamafactory(self) -> str | None:
        """The Python interpreter of LlamaFactory, or None."""
        return self.args.llamafactory or os.environ.get("TUNELINE_LLAMAFACTORY_PYTHON")

    def rows(self, num_steps: int, rows_a_step: int) -> None:
        """Write training and validation rows: tokenized for Tuneline, as conversations for peers."""
        examples = ours.align_records(ours.ingest_file(data_preparation.data_file(FILE)))
        config = TokenizeStepConfig(max_length=self.args.max_length, overlong="drop", packing=False)
        tokenized = tokenize.tokenize_pack(
            ours.without_validation(examples), source.tokenizer_manifest(self.model), config
        )
        train = tokenized.splits["train"]
        selected = train.select(range(num_steps * rows_a_step))
        held_out = train.select(range(train.num_rows - HELD_OUT, train.num_rows))
        folder = self.folder / "rows"
        folder.mkdir(exist_ok=True)
        Corpus({"train": selected, "validation": held_out}, identity=tokenized.identity).save(folder)
        messages = {example["id"]: example["messages"] for example in examples.only().to_list()}
        turns = [[turn["content"] for turn in messages[ids[0]]] for ids in selected["example_ids"]]
        assert all(len(texts) == 2 for texts in turns), "one question and one answer per conversation"
        (self.folder / "conversations.json").write_text(json.dumps(turns))
        labels = [label for row in selected["labels"] for label in row]
        self.tokens = len(labels)
        self.trained_tokens = sum(1 for label in labels if label != schema.IGNORE_INDEX)

    def run(self, name: str, contender: Contender) -> process.Result:
        """Run the training of a contender, and print its speed."""
        adapter = self.folder / f"{name}.safetensors"
        common = {
            "model": str(self.model),
            "rows": str(self.folder / "rows"),
            "conversations": str(self.folder / "conversations.json"),
            "max_length": self.args.max_length,
            "lora": LORA,
            "adapter": str(adapter),
        }
        result = process.run(contender.job, {**common, **contender.options}, contender.python)
        speed = f"{result['tokens'] / result['cpu']:.1f} tokens per CPU-second, {result['peak_rss'] / 2**20:.0f} MiB"
        print(f"{name}: {speed}", file=sys.stderr, flush=True)
        return result

    def ours(self, **load: Any) -> Contender:
        """Tuneline, with concatenated rows."""
        batch = {"per_device_train_batch_size": self.args.rows_a_pass, "gradient_accumulation_steps": 1}
        batch["gradient_accumulation_steps"] = self.args.rows_a_step // self.args.rows_a_pass
        options = {"load": load, "method": {"type": "lora", **LORA}, "train": {**TRAIN, **batch, "save_steps": 0}}
        return Contender("our_training", options)

    def trl(self, rows_a_pass: int | None = None, **config: Any) -> Contender:
        """Trl, by default with all rows of a step padded in one pass."""
        options = {**TRAIN, "max_length": self.args.max_length, **self._batch(rows_a_pass), **config}
        return Contender("trl_training", {"config": options})

    def _llamafactory(self, **config: Any) -> Contender:
        """LlamaFactory, by default with one row per pass, as in its example."""
        lora = {"lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"], "lora_target": "all"}
        options = {**TRAIN, **lora, "cutoff_len": self.args.max_length, **self._batch(1), "use_cpu": True, **config}
        arguments = {"config": options, "template": self.args.llamafactory_template}
        return Contender("llamafactory_training", arguments, str(self.llamafactory))

    def _batch(self, rows_a_pass: int | None) -> dict[str, int]:
        passes = self.args.rows_a_step // (rows_a_pass or self.args.rows_a_step)
        return {
            "per_device_train_batch_size": rows_a_pass or self.args.rows_a_step,
            "gradient_accumulation_steps": passes,
        }

    def packed(self, key: str) -> dict[str, Any]:
        """Return options for packing: one or two long rows per step, with about as many tokens as a step has."""
        a_step = self.tokens / self.args.steps
        passes = 2 if a_step >= 2 * self.args.max_length else 1
        length = max((round(a_step / passes) // LENGTH_STEP + 2) * LENGTH_STEP, self.args.max_length)
        return {key: length, "per_device_train_batch_size": 1, "gradient_accumulation_steps": passes}

    def settings(self) -> dict[str, dict[str, Contender]]:
        """Return the settings of the race: peer -> setting -> contender."""
        kinds = {"float32": {"bf16": False}, "bfloat16": {"bf16": True}}
        off: dict[str, Any] = {"gradient_checkpointing": False}
        trl, llamafactory = {}, {}
        for kind, precision in kinds.items():
            trl[f"{kind}, one row a pass"] = self.trl(1, **precision, **off)
            trl[f"{kind}, packed"] = self.trl(**precision, **off, packing=True, **self.packed("max_length"))
        trl["float32, one row a pass, chunked loss"] = self.trl(1, bf16=False, **off, loss_type="chunked_nll")
        plain = {"disable_gradient_checkpointing": True}
        for kind, precision in kinds.items():
            packing = {"packing": True, "neat_packing": True, **self.packed("cutoff_len")}
            llamafactory[f"{kind}, one row a pass"] = self._llamafactory(**precision, **plain)
            llamafactory[f"{kind}, neat packing"] = self._llamafactory(**precision, **plain, **packing)
        return {TRL_BEST: trl} | ({LLAMAFACTORY_BEST: llamafactory} if self.llamafactory else {})

    def contenders(self, fastest: dict[str, str]) -> dict[str, Contender]:
        """Return the measured contenders."""
        settings = self.settings()
        contenders = {
            OURS: self.ours(),
            OURS_RECOMPUTING: self.ours(gradient_checkpointing="full"),
            TRL: self.trl(),
            IN_FLOAT32.format(TRL): self.trl(bf16=False),
            TRL_BEST: settings[TRL_BEST][fastest[TRL_BEST]],
        }
        if self.llamafactory:
            contenders[LLAMAFACTORY] = self._llamafactory(bf16=True)
            contenders[IN_FLOAT32.format(LLAMAFACTORY)] = self._llamafactory()
            contenders[LLAMAFACTORY_BEST] = settings[LLAMAFACTORY_BEST][fastest[LLAMAFACTORY_BEST]]
        return contenders


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Determine the fastest settings of the peers, then measure all contenders in turns."""
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        bench = Benchmark(args, Path(folder))
        fastest, race_results = race(bench) if args.race else (KNOWN_FASTEST, {})
        bench.rows(args.steps, args.rows_a_step)
        contenders = {
            name: contender for name, contender in bench.contenders(fastest).items() if name not in args.without
        }
        runs: dict[str, list[process.Result]] = {name: [] for name in contenders}
        floors = []
        for turn in range(args.rounds):
            print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
            for name, contender in contenders.items():
                if not turn or seconds_per_token(runs[name]) < SLOW_FACTOR * seconds_per_token(runs[OURS]):
                    runs[name].append(bench.run(name, contender))
            floors.append(process.run("products", _products(bench)))
        losses = process.run("adapter_losses", _adapters(bench, list(contenders)))["losses"]
    return {**report(runs, floors, losses), "fastest": fastest, "race": race_results, **describe_run(bench, runs)}


MIN_RATE_RATIO = 0.5
KNOWN_FASTEST = {TRL_BEST: "float32, packed", LLAMAFACTORY_BEST: "float32, one row a pass"}
"""Fastest settings on the machine of docs/log.md."""


def race(bench: Benchmark) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Train two short steps with each setting; return the fastest per peer, and the tokens per CPU-second of all.

    A dtype whose matrix products reach less than half the rate of the other is left out.
    """
    args = bench.args
    bench.args = argparse.Namespace(**{**vars(args), "steps": 2, "rows_a_step": max(args.rows_a_step // 2, 1)})
    bench.rows(bench.args.steps, bench.args.rows_a_step)
    rates = process.run("products", _products(bench))["best_rates"]
    slow_dtype = min(rates, key=lambda kind: rates[kind])
    if rates[slow_dtype] > MIN_RATE_RATIO * max(rates.values()):
        slow_dtype = "none"
    speeds: dict[str, dict[str, float]] = {
        "left out": {slow_dtype: round(min(rates.values()) / max(rates.values()), 2)}
    }
    for peer, settings in bench.settings().items():
        candidates = {name: contender for name, contender in settings.items() if not name.startswith(slow_dtype)}
        runs = {name: bench.run(f"race: {peer}, {name}", contender) for name, contender in candidates.items()}
        speeds[peer] = {name: round(run["tokens"] / run["cpu"], 1) for name, run in runs.items()}
    bench.args = args
    return {peer: max(speeds[peer], key=lambda name: speeds[peer][name]) for peer in bench.settings()}, speeds


def _products(bench: Benchmark) -> process.Result:
    steps = bench.args.steps
    counts = {"tokens": bench.tokens // steps, "trained_tokens": bench.trained_tokens // steps}
    return {"model": str(bench.model), "lora": LORA, **counts}


def _adapters(bench: Benchmark, names: list[str]) -> process.Result:
    adapters = {name: str(bench.folder / f"{name}.safetensors") for name in names}
    return {"model": str(bench.model), "rows": str(bench.folder / "rows"), "lora": LORA, "adapters": adapters}


def report(
    runs_by_name: dict[str, list[process.Result]], floors: list[process.Result], losses: dict[str, float]
) -> dict[str, Any]:
    """Return medians, ratios, and the missed targets."""
    table = {name: _medians(runs) for name, runs in runs_by_name.items()}
    floor = {name: statistics.median(floor[name] for floor in floors) for name in ("floor_seconds", "flops")}
    best = statistics.median(max(floor["best_rates"].values()) for floor in floors)
    total = floor["flops"] / floor["floor_seconds"]
    for name, metrics in table.items():
        flops_per_second = floor["flops"] / metrics["cpu_seconds_per_step"]
        metrics |= {"floor_share": round(flops_per_second / total, 3), "mfu": round(flops_per_second / best, 3)}
        metrics["held_out_loss"] = round(losses[name], 4)
    speed = {name: 1 / seconds_per_token(runs) for name, runs in runs_by_name.items()}
    ratios = {
        name: round(speed[ours] / speed[peer], 2) if peer in speed else None for name, (ours, peer) in RATIOS.items()
    }
    reference, like = losses[OURS], TRL if TRL in table else IN_FLOAT32.format(TRL)
    summary = {
        **ratios,
        "floor_share": table[OURS]["floor_share"],
        "mfu": table[OURS]["mfu"],
        "loss_difference": round(max(abs(losses[name] / reference - 1) for name in runs_by_name), 5),
        "peak_memory_ratio": round(table[OURS]["peak_mib"] / table[like]["peak_mib"], 3),
        "peak_memory_ratio_to_trl_best": round(table[OURS]["peak_mib"] / table[TRL_BEST]["peak_mib"], 3),
    }
    missed = [name for name, target in TARGETS.items() if summary[name] is not None and _misses(name, summary, target)]
    rates = {"best_product": best, "at_model_shapes": statistics.median(f["rate_at_model_shapes"] for f in floors)}
    return {
        **summary,
        "targets": TARGETS,
        "missed": missed,
        "contenders": table,
        "untrained_loss": round(losses["none"], 4),
        "floor": {**{name: round(value, 3) for name, value in floor.items()}, "dtype": floors[0]["dtype"]},
        "gflops_per_cpu_second": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
    }


def _misses(name: str, summary: dict[str, Any], target: float) -> bool:
    return bool(summary[name] > target if name in UPPER_BOUNDS else summary[name] < target)


def seconds_per_token(runs: list[process.Result]) -> float:
    """Return CPU seconds per token without padding, as the median of the rounds."""
    return statistics.median(run["cpu"] / run["tokens"] for run in runs)


def _medians(runs: list[process.Result]) -> dict[str, Any]:
    """Return the results of one contender; a step has as many tokens as the steps of the first run on average."""
    seconds = seconds_per_token(runs)
    tokens_a_step = runs[0]["all_tokens"] / runs[0]["steps"]
    return {
        "tokens_per_cpu_second": round(1 / seconds, 1),
        "cpu_seconds_per_step": round(seconds * tokens_a_step, 2),
        "spread": [round(edge(run["tokens"] / run["cpu"] for run in runs), 1) for edge in (min, max)],
        "peak_mib": round(statistics.median(run["peak_rss"] for run in runs) / 2**20),
        "cpu_to_first_step": round(statistics.median(run["cpu_to_first_step"] for run in runs), 1),
        "rounds": len(runs),
        "tokens": runs[0]["all_tokens"],
        "steps": runs[0]["steps"],
    }


def describe_run(bench: Benchmark, runs: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return the machine, the options and the decisions of the measurement."""
    rounds = {"llamafactory packed": runs[LLAMAFACTORY_BEST]} if LLAMAFACTORY_BEST in runs else {}
    machine = data_preparation.machine(rounds)
    machine["llamafactory"] = machine["llamafactory"] if rounds else NOT_MEASURED
    return {
        "decisions": runs[OURS][0]["decisions"],
        "tokens": bench.tokens,
        "trained_tokens": bench.trained_tokens,
        "options": {
            name: str(value) for name, value in vars(bench.args).items() if name not in ("llamafactory", "model")
        },
        "machine": machine,
    }


def format_results(results: dict[str, Any]) -> str:
    """Return the results as a text table."""
    names = ("tokens_per_cpu_second", "cpu_seconds_per_step", "peak_mib", "floor_share", "mfu", "held_out_loss")
    lines = [f"{'':30}" + "".join(f"{name:>23}" for name in names)]
    lines += [
        f"{contender:30}" + "".join(f"{row[name]:>23}" for name in names)
        for contender, row in results["contenders"].items()
    ]
    for name, target in TARGETS.items():
        bound = f"{'at most' if name in UPPER_BOUNDS else 'at least'} {target}"
        verdict = "missed" if name in results["missed"] else "met"
        value = results[name]
        lines.append(f"{name:30}{NOT_MEASURED if value is None else f'{value:>12}  {bound}: {verdict}'}")
    if results["race"]:
        lines.append(f"race: {results['race']}")
    return "\n".join([*lines, f"{results['machine']}"])


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct of the catalogue)")
    parser.add_argument("--max-length", type=int, default=512, help="longer conversations are dropped")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows-a-step", type=int, default=ROWS_PER_STEP)
    parser.add_argument("--rows-a-pass", type=int, default=4, help="rows per forward pass of Tuneline, concatenated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--no-race", dest="race", action="store_false", help="use the known fastest settings of the peers"
    )
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out, by name")
    parser.add_argument("--llamafactory", help="Python of an environment with llamafactory 0.9.5")
    parser.add_argument("--llamafactory-template", default="smollm2", help="name of the chat template in LlamaFactory")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: one round of two steps of two rows, no race"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.rows_a_step, args.rows_a_pass, args.rounds, args.race = 2, 2, 2, 1, False
    return args


def main() -> None:
    """Run the benchmark and print a table or JSON."""
    args = parse_arguments()
    results = measure(args)
    print(json.dumps(results, indent=1) if args.json else format_results(results))


if __name__ == "__main__":
    main()
