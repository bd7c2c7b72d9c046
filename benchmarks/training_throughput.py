"""Tokens a CPU-second of LoRA training: ours beside trl and LlamaFactory, as they come and at their fastest.

    TUNELINE_TEST_DATA=... python -m benchmarks.training_throughput [--json] [--llamafactory .../bin/python]

Everyone trains SmolLM2-135M-Instruct with LoRA (rank 8, all linear layers) on the same conversations of alpaca_en_demo
in the same order, once: so many an optimizer step, none longer than a row, AdamW at one constant learning rate. Each
run is a process of its own with one thread; contenders take turns, and medians are compared. CPU seconds are user and
system time from the end of the first step to the end of the last. Tokens are real ones: padding counts for nobody. Who
is much slower than us runs once.

A peer's fastest setting is found by a short race of settings before (`--no-race` takes those of docs/log.md). Peers
that pack meet the rows in another order. `loss_difference` compares adapters on held-out rows: one process, one code.
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
SLOW = 5
"""Who takes so many times our time in the first round is not asked again."""

ROWS_A_STEP = 8
"""As LlamaFactory's example has it, and trl by default."""

ROOM = 64
"""Packed rows are longer than the average by one to two of this, so that as many as there are steps hold everything;
LlamaFactory pads to multiples of 8, so theirs must be of such a length."""

TARGETS = {
    "vs_trl": 5.0,
    "vs_trl_best": 2.0,
    "vs_llamafactory": 2.8,
    "vs_llamafactory_best": 1.6,
    "floor_share": 0.6,
    "loss_difference": 0.01,
    "peak_memory_ratio": 1.0,
}
AT_MOST = ("loss_difference", "peak_memory_ratio")
OURS, OURS_RECOMPUTING = "tuneline", "tuneline, recomputing"
TRL, TRL_BEST = "trl as it comes", "trl at its fastest"
THEIRS, THEIR_BEST = "llamafactory's example", "llamafactory at its fastest"
IN_FLOAT32 = "{}, in float32"
"""Both come in bfloat16, which is slow on a CPU that has no units for it."""

RATIOS = {
    "vs_trl": (OURS, TRL),
    "vs_trl_best": (OURS, TRL_BEST),
    "vs_trl_in_float32": (OURS, IN_FLOAT32.format(TRL)),
    "vs_llamafactory": (OURS_RECOMPUTING, THEIRS),
    "vs_llamafactory_in_float32": (OURS_RECOMPUTING, IN_FLOAT32.format(THEIRS)),
    "vs_llamafactory_best": (OURS, THEIR_BEST),
}
NO_PEER = "not measured: --without, or no --llamafactory and no TUNELINE_LLAMAFACTORY_PYTHON"


@dataclass(frozen=True)
class Contender:
    """A job, what it is told, and its interpreter."""

    job: str
    told: dict[str, Any]
    python: str = sys.executable


@dataclass
class Bench:
    """Rows on disk and what all contenders are told."""

    told: argparse.Namespace
    folder: Path
    model: Path = field(init=False)
    tokens: int = 0
    trained_tokens: int = 0

    def __post_init__(self) -> None:
        self.model = data_preparation.model_folder(self.told.model)

    @property
    def llamafactory(self) -> str | None:
        """Its interpreter, if there is one."""
        return self.told.llamafactory or os.environ.get("TUNELINE_LLAMAFACTORY_PYTHON")

    def rows(self, num_steps: int, rows_a_step: int) -> None:
        """Write the rows of so many steps, tokenized for us and as conversations for peers, and the held-out ones."""
        examples = ours.shape(ours.read(data_preparation.data_file(FILE)))
        config = TokenizeStepConfig(max_length=self.told.max_length, overlong="drop", packing=False)
        made = tokenize.tokenize_pack(ours.unmixed(examples), source.tokenizer_manifest(self.model), config)
        train, wanted = made.splits["train"], num_steps * rows_a_step
        chosen = train.select(range(wanted))
        held_out = train.select(range(train.num_rows - HELD_OUT, train.num_rows))
        folder = self.folder / "rows"
        folder.mkdir(exist_ok=True)
        Corpus({"train": chosen, "validation": held_out}, identity=made.identity).save(folder)
        said = {example["id"]: example["messages"] for example in examples.only().to_list()}
        turns = [[turn["content"] for turn in said[ids[0]]] for ids in chosen["example_ids"]]
        assert all(len(each) == 2 for each in turns), "one question, one answer"
        (self.folder / "conversations.json").write_text(json.dumps(turns))
        labels = [label for row in chosen["labels"] for label in row]
        self.tokens = len(labels)
        self.trained_tokens = sum(1 for label in labels if label != schema.IGNORE_INDEX)

    def run(self, name: str, contender: Contender) -> process.Result:
        """Let a contender train, and say how fast it was."""
        adapter = self.folder / f"{name}.safetensors"
        common = {
            "model": str(self.model),
            "rows": str(self.folder / "rows"),
            "conversations": str(self.folder / "conversations.json"),
            "max_length": self.told.max_length,
            "lora": LORA,
            "adapter": str(adapter),
        }
        found = process.run(contender.job, {**common, **contender.told}, contender.python)
        shown = f"{found['tokens'] / found['cpu']:.1f} tokens a CPU-second, {found['peak_rss'] / 2**20:.0f} MiB"
        print(f"{name}: {shown}", file=sys.stderr, flush=True)
        return found

    def ours(self, **load: Any) -> Contender:
        """Our training, with rows of a step laid end to end."""
        batch = {"per_device_train_batch_size": self.told.rows_a_pass, "gradient_accumulation_steps": 1}
        batch["gradient_accumulation_steps"] = self.told.rows_a_step // self.told.rows_a_pass
        told = {"load": load, "method": {"type": "lora", **LORA}, "train": {**TRAIN, **batch, "save_steps": 0}}
        return Contender("our_training", told)

    def trl(self, rows_a_pass: int | None = None, **config: Any) -> Contender:
        """Trl's, with rows of a step padded in one pass where nothing else is said."""
        told = {**TRAIN, "max_length": self.told.max_length, **self._batch(rows_a_pass), **config}
        return Contender("trl_training", {"config": told})

    def theirs(self, **config: Any) -> Contender:
        """LlamaFactory's, one row a pass where nothing else is said, as in its example."""
        lora = {"lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"], "lora_target": "all"}
        told = {**TRAIN, **lora, "cutoff_len": self.told.max_length, **self._batch(1), "use_cpu": True, **config}
        arguments = {"config": told, "template": self.told.llamafactory_template}
        return Contender("llamafactory_training", arguments, str(self.llamafactory))

    def _batch(self, rows_a_pass: int | None) -> dict[str, int]:
        passes = self.told.rows_a_step // (rows_a_pass or self.told.rows_a_step)
        return {
            "per_device_train_batch_size": rows_a_pass or self.told.rows_a_step,
            "gradient_accumulation_steps": passes,
        }

    def packed(self, key: str) -> dict[str, Any]:
        """Return what makes peers pack: long rows, one or two a step, of as many tokens as a step has, nearly."""
        a_step = self.tokens / self.told.steps
        passes = 2 if a_step >= 2 * self.told.max_length else 1
        length = max((round(a_step / passes) // ROOM + 2) * ROOM, self.told.max_length)
        return {key: length, "per_device_train_batch_size": 1, "gradient_accumulation_steps": passes}

    def settings(self) -> dict[str, dict[str, Contender]]:
        """Return the settings that race: peer -> setting -> contender."""
        kinds = {"float32": {"bf16": False}, "bfloat16": {"bf16": True}}
        off: dict[str, Any] = {"gradient_checkpointing": False}
        trl, theirs = {}, {}
        for kind, precision in kinds.items():
            trl[f"{kind}, one row a pass"] = self.trl(1, **precision, **off)
            trl[f"{kind}, packed"] = self.trl(**precision, **off, packing=True, **self.packed("max_length"))
        trl["float32, one row a pass, chunked loss"] = self.trl(1, bf16=False, **off, loss_type="chunked_nll")
        plain = {"disable_gradient_checkpointing": True}
        for kind, precision in kinds.items():
            packing = {"packing": True, "neat_packing": True, **self.packed("cutoff_len")}
            theirs[f"{kind}, one row a pass"] = self.theirs(**precision, **plain)
            theirs[f"{kind}, neat packing"] = self.theirs(**precision, **plain, **packing)
        return {TRL_BEST: trl} | ({THEIR_BEST: theirs} if self.llamafactory else {})

    def contenders(self, fastest: dict[str, str]) -> dict[str, Contender]:
        """Return who is measured."""
        settings = self.settings()
        found = {
            OURS: self.ours(),
            OURS_RECOMPUTING: self.ours(gradient_checkpointing="full"),
            TRL: self.trl(),
            IN_FLOAT32.format(TRL): self.trl(bf16=False),
            TRL_BEST: settings[TRL_BEST][fastest[TRL_BEST]],
        }
        if self.llamafactory:
            found[THEIRS] = self.theirs(bf16=True)
            found[IN_FLOAT32.format(THEIRS)] = self.theirs()
            found[THEIR_BEST] = settings[THEIR_BEST][fastest[THEIR_BEST]]
        return found


def measure(told: argparse.Namespace) -> dict[str, Any]:
    """Race the peers' settings, then measure all contenders in turns."""
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        bench = Bench(told, Path(folder))
        fastest, raced = race(bench) if told.race else (FASTEST, {})
        bench.rows(told.steps, told.rows_a_step)
        contenders = {name: one for name, one in bench.contenders(fastest).items() if name not in told.without}
        found: dict[str, list[process.Result]] = {name: [] for name in contenders}
        floors = []
        for turn in range(told.rounds):
            print(f"round {turn + 1} of {told.rounds}", file=sys.stderr)
            for name, contender in contenders.items():
                if not turn or seconds_a_token(found[name]) < SLOW * seconds_a_token(found[OURS]):
                    found[name].append(bench.run(name, contender))
            floors.append(process.run("products", _products(bench)))
        losses = process.run("adapter_losses", _adapters(bench, list(contenders)))["losses"]
    return {**report(found, floors, losses), "fastest": fastest, "race": raced, **about(bench, found)}


HOPELESS = 0.5
FASTEST = {TRL_BEST: "float32, packed", THEIR_BEST: "float32, one row a pass"}
"""What won on the machine of docs/log.md."""


def race(bench: Bench) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Let each peer's settings train two short steps; return the fastest and the tokens a CPU-second of all.

    A number format whose products run at less than half of the other's rate is left out.
    """
    told = bench.told
    bench.told = argparse.Namespace(**{**vars(told), "steps": 2, "rows_a_step": max(told.rows_a_step // 2, 1)})
    bench.rows(bench.told.steps, bench.told.rows_a_step)
    rates = process.run("products", _products(bench))["best_rates"]
    hopeless = min(rates, key=lambda kind: rates[kind])
    if rates[hopeless] > HOPELESS * max(rates.values()):
        hopeless = "none"
    speeds: dict[str, dict[str, float]] = {"left out": {hopeless: round(min(rates.values()) / max(rates.values()), 2)}}
    for peer, settings in bench.settings().items():
        able = {name: one for name, one in settings.items() if not name.startswith(hopeless)}
        runs = {name: bench.run(f"race: {peer}, {name}", one) for name, one in able.items()}
        speeds[peer] = {name: round(run["tokens"] / run["cpu"], 1) for name, run in runs.items()}
    bench.told = told
    return {peer: max(speeds[peer], key=lambda name: speeds[peer][name]) for peer in bench.settings()}, speeds


def _products(bench: Bench) -> process.Result:
    steps = bench.told.steps
    counts = {"tokens": bench.tokens // steps, "trained_tokens": bench.trained_tokens // steps}
    return {"model": str(bench.model), "lora": LORA, **counts}


def _adapters(bench: Bench, names: list[str]) -> process.Result:
    adapters = {name: str(bench.folder / f"{name}.safetensors") for name in names}
    return {"model": str(bench.model), "rows": str(bench.folder / "rows"), "lora": LORA, "adapters": adapters}


def report(
    found: dict[str, list[process.Result]], floors: list[process.Result], losses: dict[str, float]
) -> dict[str, Any]:
    """Return medians, ratios, and what was missed."""
    table = {name: _medians(runs) for name, runs in found.items()}
    floor = {name: statistics.median(each[name] for each in floors) for name in ("floor_seconds", "flops")}
    best = statistics.median(max(each["best_rates"].values()) for each in floors)
    total = floor["flops"] / floor["floor_seconds"]
    for name, figures in table.items():
        flops_a_second = floor["flops"] / figures["cpu_seconds_a_step"]
        figures |= {"floor_share": round(flops_a_second / total, 3), "mfu": round(flops_a_second / best, 3)}
        figures["held_out_loss"] = round(losses[name], 4)
    speed = {name: 1 / seconds_a_token(runs) for name, runs in found.items()}
    ratios = {
        name: round(speed[one] / speed[other], 2) if other in speed else None for name, (one, other) in RATIOS.items()
    }
    reference, like = losses[OURS], TRL if TRL in table else IN_FLOAT32.format(TRL)
    summary = {
        **ratios,
        "floor_share": table[OURS]["floor_share"],
        "mfu": table[OURS]["mfu"],
        "loss_difference": round(max(abs(losses[name] / reference - 1) for name in found), 5),
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
        "gflops_a_cpu_second": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
    }


def _misses(name: str, summary: dict[str, Any], target: float) -> bool:
    return bool(summary[name] > target if name in AT_MOST else summary[name] < target)


def seconds_a_token(runs: list[process.Result]) -> float:
    """Return CPU seconds a real token, the median of the rounds."""
    return statistics.median(run["cpu"] / run["tokens"] for run in runs)


def _medians(runs: list[process.Result]) -> dict[str, Any]:
    """Return the figures of one contender; a step is one of as many tokens as ours has on average."""
    seconds = seconds_a_token(runs)
    tokens_a_step = runs[0]["all_tokens"] / runs[0]["steps"]
    return {
        "tokens_per_cpu_second": round(1 / seconds, 1),
        "cpu_seconds_a_step": round(seconds * tokens_a_step, 2),
        "spread": [round(edge(run["tokens"] / run["cpu"] for run in runs), 1) for edge in (min, max)],
        "peak_mib": round(statistics.median(run["peak_rss"] for run in runs) / 2**20),
        "cpu_to_first_step": round(statistics.median(run["cpu_to_first_step"] for run in runs), 1),
        "rounds": len(runs),
        "tokens": runs[0]["all_tokens"],
        "steps": runs[0]["steps"],
    }


def about(bench: Bench, found: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return where and with what this was measured."""
    rounds = {"llamafactory packed": found[THEIR_BEST]} if THEIR_BEST in found else {}
    machine = data_preparation.machine(rounds)
    machine["llamafactory"] = machine["llamafactory"] if rounds else NO_PEER
    return {
        "decisions": found[OURS][0]["decisions"],
        "tokens": bench.tokens,
        "trained_tokens": bench.trained_tokens,
        "told": {name: str(value) for name, value in vars(bench.told).items() if name not in ("llamafactory", "model")},
        "machine": machine,
    }


def show(found: dict[str, Any]) -> str:
    """Return the figures for reading."""
    names = ("tokens_per_cpu_second", "cpu_seconds_a_step", "peak_mib", "floor_share", "mfu", "held_out_loss")
    lines = [f"{'':30}" + "".join(f"{name:>23}" for name in names)]
    lines += [f"{who:30}" + "".join(f"{each[name]:>23}" for name in names) for who, each in found["contenders"].items()]
    for name, target in TARGETS.items():
        bound = f"{'at most' if name in AT_MOST else 'at least'} {target}"
        verdict = "missed" if name in found["missed"] else "met"
        value = found[name]
        lines.append(f"{name:30}{NO_PEER if value is None else f'{value:>12}  {bound}: {verdict}'}")
    if found["race"]:
        lines.append(f"race: {found['race']}")
    return "\n".join([*lines, f"{found['machine']}"])


def parsed() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory; else SmolLM2-135M-Instruct of the catalogue")
    parser.add_argument("--max-length", type=int, default=512, help="longer conversations are left out")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows-a-step", type=int, default=ROWS_A_STEP)
    parser.add_argument("--rows-a-pass", type=int, default=4, help="of ours, laid end to end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--no-race", dest="race", action="store_false", help="take the peers' fastest settings as known"
    )
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out, by name")
    parser.add_argument("--llamafactory", help="Python of an environment with llamafactory 0.9.5")
    parser.add_argument("--llamafactory-template", default="smollm2", help="its name for the model's template")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: one round of two steps of two rows, no race"
    )
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    if told.quick:
        told.steps, told.rows_a_step, told.rows_a_pass, told.rounds, told.race = 2, 2, 2, 1, False
    return told


def main() -> None:
    """Measure, and print a table or JSON."""
    told = parsed()
    found = measure(told)
    print(json.dumps(found, indent=1) if told.json else show(found))


if __name__ == "__main__":
    main()
