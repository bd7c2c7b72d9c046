"""One step of our data worker, or all of them in a row, as a job whose memory is watched from outside.

A step reads what the step before it kept, and keeps what it made; how much memory it takes is for the watcher to say,
who is told by two files when the work begins and ends.
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
    """Do one step, or `whole`."""
    kept = Path(arguments["kept"])
    scratch = Path(arguments["scratch"])
    _forget_peak()
    (scratch / BEGAN).touch()
    made = whole(arguments) if arguments["step"] == "whole" else _step(arguments, kept)()
    peak = _status("VmHWM")
    (scratch / ENDED).touch()
    if arguments["step"] != "whole":
        (kept / arguments["step"]).mkdir()
        made.save(kept / arguments["step"])
    maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_rss": peak, "maxrss": maxrss, "rows": made.num_rows(), "split_bytes": _sizes(made)}


def whole(arguments: process.Result) -> Corpus:
    """Go the whole way in one process, as `tuneline.data.prepare` does."""
    mixture = ours.mix(ours.shape(ours.read(Path(arguments["data"]))))
    return ours.rows(mixture, Path(arguments["model"]), arguments["max_length"])


def _step(arguments: process.Result, kept: Path) -> Callable[[], Corpus]:
    step = arguments["step"]
    if step == "ingest":
        return partial(ours.read, Path(arguments["data"]))
    before = Corpus.load(kept / STEPS[STEPS.index(step) - 1])
    if step == "tokenize_pack":
        return partial(ours.rows, before, Path(arguments["model"]), arguments["max_length"])
    return partial(ours.shape if step == "align" else ours.mix, before)


def _sizes(made: Corpus) -> dict[str, int]:
    """Return the bytes of the Arrow files behind a corpus, which may be mapped into memory."""
    return {
        name: sum(Path(file["filename"]).stat().st_size for file in rows.cache_files)
        for name, rows in made.splits.items()
    }


def _forget_peak() -> None:
    """Let the peak begin anew, where the kernel does that, so that imports do not hide the work's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    process.job(work)
