"""Memory of the data steps per additional row: each step alone, and all steps in one process.

    TUNELINE_TEST_DATA=... python -m benchmarks.data_memory [--json] [--variations 1 10]

Each step runs once on a file of 50,000 rows and once on a file of ten times as many rows, all different. The memory per
row is the difference of the two peaks divided by the number of additional rows. Two peaks are measured: anonymous
memory (allocated by the process), sampled every 20 ms from outside, and resident memory, as recorded by the kernel.
Memory that is resident but not anonymous belongs to mapped files (Arrow), which the kernel can reclaim.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import data_preparation
from benchmarks.peers import process

STEPS = ("ingest", "align", "merge", "tokenize_pack", "whole")
MAX_BYTES_PER_ROW = 100
"""Limit of anonymous memory in bytes per row."""

SECONDS_BETWEEN_SAMPLES = 0.02


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every step at both sizes."""
    model = data_preparation.model_folder(args.model)
    peaks: dict[str, list[process.Result]] = {step: [] for step in STEPS}
    sizes = []
    for variations in args.variations:
        with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
            path = Path(folder) / "alpaca.jsonl"
            sizes.append(_write(path, variations))
            for step in STEPS:
                print(f"{sizes[-1]} rows: {step}", file=sys.stderr)
                arguments = {"step": step, "data": str(path), "model": str(model), "max_length": args.max_length}
                peaks[step].append(run_with_memory({**arguments, "store": folder}))
    return report(sizes, peaks)


def _write(path: Path, variations: int) -> int:
    """Write the rows of the file `variations` times, with a number after each instruction; return the row count."""
    count = 0
    with path.open("w") as out:
        for row in _rows(variations):
            out.write(json.dumps({**row, "instruction": f"{row['instruction']} ({count})"}, ensure_ascii=False) + "\n")
            count += 1
    return count


def _rows(variations: int) -> Iterator[dict[str, str]]:
    for _ in range(variations):
        with gzip.open(data_preparation.data_file(), "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def run_with_memory(arguments: process.Result, name: str = "memory") -> process.Result:
    """Run a job and return its result, with its peak anonymous and file-backed memory."""
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        scratch = Path(folder)
        job = process.start(name, arguments, scratch)
        status, started_file, ended_file = Path(f"/proc/{job.pid}/status"), scratch / "began", scratch / "ended"
        peak = {"RssAnon": 0, "RssFile": 0}
        base, peak_resident = dict(peak), 0
        while job.poll() is None and not ended_file.exists():
            if started_file.exists():
                memory = _memory(status)
                base = base if any(base.values()) else {name: memory.get(name, 0) for name in peak}
                peak = {name: max(peak[name], memory.get(name, 0)) for name in peak}
                peak_resident = max(peak_resident, sum(memory.get(name, 0) for name in peak))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        result = process.finish(job, name, scratch)
    before = {"anonymous_before": base.get("RssAnon", 0), "resident_before": sum(base.values())}
    return {**result, "anonymous": peak["RssAnon"], "file": peak["RssFile"], "resident": peak_resident, **before}


def _memory(status: Path) -> dict[str, int]:
    """Return the sizes in a status file in bytes; empty if the process has ended."""
    try:
        lines = [line.split() for line in status.read_text().splitlines()]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def report(sizes: list[int], peaks: dict[str, list[process.Result]]) -> dict[str, Any]:
    """Return bytes per additional row, and the peaks in MiB."""
    rows = sizes[-1] - sizes[0]
    kinds = {"anonymous": "anonymous", "rss": "peak_rss", "maxrss": "maxrss"}
    bytes_per_row = {
        step: {kind: round((runs[-1][key] - runs[0][key]) / rows, 1) for kind, key in kinds.items()}
        for step, runs in peaks.items()
    }
    columns = ("anonymous_before", "anonymous", "file", "peak_rss", "maxrss")
    return {
        "bytes_per_row": bytes_per_row,
        "bound": MAX_BYTES_PER_ROW,
        "within_bound": {step: sizes["anonymous"] <= MAX_BYTES_PER_ROW for step, sizes in bytes_per_row.items()},
        "rows": sizes,
        "peak_mib": {
            step: [{name: round(run[name] / 2**20, 1) for name in columns} for run in runs]
            for step, runs in peaks.items()
        },
        "files_mib": {
            step: [round(sum(run["split_bytes"].values()) / 2**20, 1) for run in runs] for step, runs in peaks.items()
        },
    }


def format_table(results: dict[str, Any]) -> str:
    """Return the results as a text table."""
    small, large = results["rows"]
    lines = [
        f"{'':16}{'bytes per additional row':>24}{'':4}{f'peak MiB at {small} and {large} rows':>44}",
        f"{'step':16}{'anonymous':>12}{'resident':>12}{'':4}{'anonymous':>22}{'resident':>22}",
    ]
    for step, cost in results["bytes_per_row"].items():
        anonymous, resident = (
            " and ".join(str(peak[name]) for peak in results["peak_mib"][step]) for name in ("anonymous", "peak_rss")
        )
        lines.append(f"{step:16}{cost['anonymous']:>12}{cost['rss']:>12}{'':4}{anonymous:>22}{resident:>22}")
    over = [step for step, within in results["within_bound"].items() if not within]
    lines.append(f"above {results['bound']} bytes of anonymous memory per row: {', '.join(over) or 'none'}")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct of the catalogue)")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument(
        "--variations", type=int, nargs=2, default=[1, 10], help="the two sizes, in multiples of the file"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = measure(args)
    print(json.dumps(results, indent=1) if args.json else format_table(results))


if __name__ == "__main__":
    main()
