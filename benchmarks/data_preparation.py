"""Rows prepared per CPU-second: our data steps, those of LlamaFactory and those of trl, on the same file.

    TUNELINE_TEST_DATA=... python -m benchmarks.data_preparation [--json] [--llamafactory-python .../bin/python]

CPU-seconds are user and system time, including child processes; other load on the machine affects them less than wall
time. Each measurement runs in a separate process, measurements run in turns, and medians are compared. Imports and
loading the tokenizer are not timed; building our encoder and compiling the template are part of the step and timed.

`cold_ratio` compares the same work: both start from loaded records, and end with packed rows of `--max-length` tokens
with a loss mask. The ratios from the file include reading, and for Tuneline the work that LlamaFactory does not do:
file hashes, deduplication, the validation split and its decontamination. `vs_trl` starts from examples, as trl does.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers import process

FILE = "sft/alpaca_data_50k.jsonl.gz"
PACKAGES = ("tuneline", "transformers", "tokenizers", "tiktoken", "datasets", "pyarrow", "trl")
EVERYTHING = ("ingest", "load", "align", "merge", "tokenize_pack")
FROM_RECORDS = ("align", "tokenize_pack")
FROM_EXAMPLES = ("tokenize_pack",)
RATIOS = {
    "cold_ratio": ("prepare", "llamafactory packed", FROM_RECORDS),
    "cold_ratio_unpacked": ("prepare", "llamafactory unpacked", FROM_RECORDS),
    "from_file": ("whole", "llamafactory packed", EVERYTHING),
    "from_file_unpacked": ("whole", "llamafactory unpacked", EVERYTHING),
    "vs_trl": ("prepare", "trl packed", FROM_EXAMPLES),
    "vs_trl_with_align": ("prepare", "trl packed", FROM_RECORDS),
}
"""Our job, the peer's job, and the timed stages that count if a job has them; our rows are always packed."""

NUM_TRL_COMPARISONS = 2000


def data_file(name: str = FILE) -> Path:
    """Return the path of a test file.

    Raises:
        SystemExit: The folder `TUNELINE_TEST_DATA` does not contain it.
    """
    path = Path(os.environ.get("TUNELINE_TEST_DATA", "")) / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing. Set TUNELINE_TEST_DATA to the folder that holds {name}.")
    return path


def model_folder(path: Path | None) -> Path:
    """Return the model directory: the given one, or SmolLM2 of the catalogue."""
    if path is not None:
        return path.resolve()
    from tuneline.config.sections.model import CatalogueModel
    from tuneline.model import source

    tokenizer, _, _ = source.resolve_model(CatalogueModel(type="catalogue", name="smollm2-135m-instruct"))
    return Path(tokenizer.only().location)


def jobs(args: argparse.Namespace) -> dict[str, tuple[str, process.Result, str]]:
    """Return the measurements by name: the job, its arguments and its interpreter."""
    ours = {what: ("ours", {"what": what}, sys.executable) for what in ("whole", "prepare")}
    trl = {"trl packed": ("trl_preparation", {"every": args.trl_every}, sys.executable)}
    if args.llamafactory_python is None:
        return {**ours, **trl}
    llamafactory = {
        f"llamafactory {'packed' if packing else 'unpacked'}": (
            "llamafactory_preparation",
            {"packing": packing, "template": args.llamafactory_template},
            str(args.llamafactory_python),
        )
        for packing in (True, False)
    }
    return {**ours, **llamafactory, **trl}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all measurements in turns and compare them; every job reads the same decompressed file."""
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        path = Path(folder) / "alpaca.jsonl"
        with gzip.open(data_file(), "rb") as compressed, path.open("wb") as decompressed:
            shutil.copyfileobj(compressed, decompressed)
        common = {"data": str(path), "model": str(model_folder(args.model)), "max_length": args.max_length}
        rounds: dict[str, list[process.Result]] = {name: [] for name in jobs(args)}
        for number in range(args.rounds):
            for name, (job, arguments, python) in jobs(args).items():
                print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr)
                rounds[name].append(process.run(job, {**common, **arguments}, python))
        print("comparing ids", file=sys.stderr)
        rows = rounds["prepare"][0]["rows"]
        parity = process.run("parity", {**common, "trl_every": max(rows // NUM_TRL_COMPARISONS, 1)})
    return {**compare(rounds), **parity, "rounds": args.rounds, "machine": machine(rounds)}


def compare(rounds: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return ratios and the values behind them; a ratio whose peer was not measured is null."""
    ratios = {
        name: round(speed(rounds[ours], stages) / speed(rounds[peer], stages), 2) if peer in rounds else None
        for name, (ours, peer, stages) in RATIOS.items()
    }
    meanings = {
        name: f"{ours} / {peer}: {_stage_names(rounds[ours], stages)} / {_stage_names(rounds.get(peer), stages)}"
        for name, (ours, peer, stages) in RATIOS.items()
    }
    return {
        **ratios,
        "ratios_are": meanings,
        "rows_per_cpu_second": {name: round(speed(runs, EVERYTHING)) for name, runs in rounds.items()},
        "rows_per_cpu_second_from_records": {name: round(speed(runs, FROM_RECORDS)) for name, runs in rounds.items()},
        "seconds": {name: _seconds_by_stage(runs) for name, runs in rounds.items()},
        "spread": {name: [round(min(totals), 2), round(max(totals), 2)] for name, totals in _totals(rounds).items()},
        "outputs": {name: _outputs(runs[0]) for name, runs in rounds.items()},
    }


def speed(runs: list[process.Result], stages: tuple[str, ...]) -> float:
    """Return rows per CPU-second for some stages of the work, as the median of the rounds."""
    return float(runs[0]["rows"] / median(sum(run["cpu"].get(name, 0.0) for name in stages) for run in runs))


def _stage_names(runs: list[process.Result] | None, stages: tuple[str, ...]) -> str:
    return " + ".join(name for name in stages if name in runs[0]["cpu"]) if runs else "not measured"


def _seconds_by_stage(runs: list[process.Result]) -> dict[str, float]:
    return {name: round(median(run["cpu"][name] for run in runs), 2) for name in runs[0]["cpu"]}


def _totals(rounds: dict[str, list[process.Result]]) -> dict[str, list[float]]:
    return {name: [sum(run["cpu"].values()) for run in runs] for name, runs in rounds.items()}


def _outputs(run: process.Result) -> process.Result:
    return {name: value for name, value in run.items() if name not in ("cpu", "wall", "versions")}


def machine(rounds: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return the machine and versions of the measurement."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    llamafactory_versions = rounds.get("llamafactory packed", [{}])[0].get(
        "versions", "not measured: no --llamafactory-python"
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "llamafactory": llamafactory_versions,
    }


def format_table(results: dict[str, Any]) -> str:
    """Return the results as a text table."""
    lines = [f"{'':24}{'rows/CPU-s':>12}{'CPU-s':>9}{'min to max':>16}  stages"]
    for name, stages in results["seconds"].items():
        low, high = results["spread"][name]
        by_stage = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in stages.items())
        total, rate = sum(stages.values()), results["rows_per_cpu_second"][name]
        lines.append(f"{name:24}{rate:>12}{total:>9.2f}{f'{low} to {high}':>16}  {by_stage}")
    lines += ["", *(f"{name:24}{results[name]!s:>12}  {meaning}" for name, meaning in results["ratios_are"].items())]
    lines.append(f"ids and labels equal the template's: {results['same_as_template']} ({results['compared']} examples)")
    lines.append(f"ids equal trl's: {results['same_as_trl']} ({results['compared_with_trl']} examples)")
    for name, outputs in results["outputs"].items():
        lines.append(f"{name}: {outputs}")
    return "\n".join([*lines, f"{results['machine']}"])


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct of the catalogue)")
    parser.add_argument("--llamafactory-python", type=Path, help="Python of an environment with llamafactory 0.9.5")
    parser.add_argument("--llamafactory-template", default="smollm2", help="name of the chat template in LlamaFactory")
    parser.add_argument("--trl-every", type=int, default=1, help="use every N-th row for trl, which is slow")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark and print a table or JSON."""
    args = parse_arguments()
    results = measure(args)
    print(json.dumps(results, indent=1) if args.json else format_table(results))


if __name__ == "__main__":
    main()
