"""One of our data steps, or all in one process, as a job whose memory is measured from outside.

A step reads the stored result of the previous step and stores its own. The parent process measures memory; two files
mark the start and the end of the work.
"""

import contextlib
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.peers import ours, process
from tuneline.data.corpus import Corpus

STEPS = ("ingest", "align", "merge", "tokenize_pack")
BEGAN, ENDED = "began", "ended"


def work(arguments: process.Result) -> process.Result:
    """Run one step, or all (`whole`)."""
    store = Path(arguments["store"])
    scratch = Path(arguments["scratch"])
    _reset_peak()
    (scratch / BEGAN).touch()
    result = run_all_steps(arguments) if arguments["step"] == "whole" else _step(arguments, store)()
    peak = _status("VmHWM")
    (scratch / ENDED).touch()
    if arguments["step"] != "whole":
        (store / arguments["step"]).mkdir()
        result.save(store / arguments["step"])
    maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_rss": peak, "maxrss": maxrss, "rows": result.num_rows(), "split_bytes": _sizes(result)}


def run_all_steps(arguments: process.Result) -> Corpus:
    """Run all steps in one process, as `tuneline.data.prepare` does."""
    mixture = ours.merge_with_defaults(ours.align_records(ours.ingest_file(Path(arguments["data"]))))
    return ours.pack_rows(mixture, Path(arguments["model"]), arguments["max_length"])


def _step(arguments: process.Result, store: Path) -> Callable[[], Corpus]:
    step = arguments["step"]
    if step == "ingest":
        return partial(ours.ingest_file, Path(arguments["data"]))
    previous = Corpus.load(store / STEPS[STEPS.index(step) - 1])
    if step == "tokenize_pack":
        return partial(ours.pack_rows, previous, Path(arguments["model"]), arguments["max_length"])
    return partial(ours.align_records if step == "align" else ours.merge_with_defaults, previous)


def _sizes(corpus: Corpus) -> dict[str, int]:
    """Return the sizes in bytes of the Arrow files of a corpus, which may be memory-mapped."""
    return {
        name: sum(Path(file["filename"]).stat().st_size for file in rows.cache_files)
        for name, rows in corpus.splits.items()
    }


def _reset_peak() -> None:
    """Reset the peak memory if the kernel supports it, so that imports do not hide the peak of the work."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    process.run_as_job(work)
