"""How many exam questions a CPU-second answers: our evaluator beside lm-evaluation-harness and LlamaFactory's loop.

    TUNELINE_TEST_DATA=... python -m benchmarks.exam_throughput [--json] [--questions 100]

The same questions of real exams, the same prompts with five solved questions, the same model (SmolLM2-135M-Instruct in
float32), one thread. Each engine runs in a process of its own; imports and loading the model are not timed. CPU-seconds
are user and system time. `same_answers` tells whether all engines chose the same letter for every question.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import data_preparation
from benchmarks.peers import process
from tuneline.config.sections.exams import ExamConfig, subject_title
from tuneline.data.benchmarks import exam_files, multiple_choice
from tuneline.evaluation.tasks import letter_logprobs

SUBJECTS = ("mmlu:astronomy", "mmlu:high_school_biology", "cmmlu:college_education")
ENGINES = ("ours", "lm_eval", "llamafactory_loop")
NUM_SHOTS = 5
LLAMAFACTORY_BATCH = 4


def questions(subjects: list[str], count: int, folder: Path) -> list[dict[str, Any]]:
    """Lay out the first questions of subjects, given as `benchmark:subject`, for the engines."""
    found = []
    for name in subjects:
        benchmark, _, subject = name.partition(":")
        config = ExamConfig(name=benchmark, benchmark=benchmark, path=folder / f"{benchmark}.zip", subjects=[subject])
        exam = multiple_choice.read_exam(exam_files.locate_exams([config]).only())
        shots, asked = exam.shots[subject][:NUM_SHOTS], exam.test[subject][:count]
        found.append(
            {
                "prompts": [letter_logprobs.prompt(question, shots, benchmark) for question in asked],
                "head": letter_logprobs.HEADERS[benchmark].format(subject=subject_title(benchmark, subject)),
                "answer": letter_logprobs.ANSWER_PREFIXES[benchmark],
                "dev": [[shot.text, *shot.choices, shot.answer] for shot in shots],
                "test": [[question.text, *question.choices, question.answer] for question in asked],
            }
        )
    return found


def measure(told: argparse.Namespace) -> dict[str, Any]:
    """Let the engines answer, turn by turn."""
    data = Path(os.environ.get("TUNELINE_TEST_DATA", "")) / "exams"
    if not data.is_dir():
        raise SystemExit(f"{data} is missing. Set TUNELINE_TEST_DATA to the folder that holds exams/.")
    found: dict[str, list[process.Result]] = {engine: [] for engine in told.engines}
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        asked = questions(told.subjects, told.questions, data)
        path = Path(folder) / "questions.json"
        path.write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
        model = str(data_preparation.model_folder(told.model))
        for turn in range(told.repeats):
            for engine in told.engines:
                print(f"{turn + 1} of {told.repeats}: {engine}", file=sys.stderr)
                size = told.lm_eval_batch if engine == "lm_eval" else LLAMAFACTORY_BATCH
                arguments = {"engine": engine, "model": model, "questions": str(path), "batch_size": size}
                found[engine].append(process.run("exam_engines", arguments))
    right = [row[-1] for subject in asked for row in subject["test"]]
    return {"subjects": told.subjects, **report(found, right)}


def report(found: dict[str, list[process.Result]], right: list[str]) -> dict[str, Any]:
    """Return questions a CPU-second, ratios, and whether all chose the same letters."""
    seconds = {engine: median(run["cpu_seconds"] for run in runs) for engine, runs in found.items()}
    answers = {engine: runs[0]["answers"] for engine, runs in found.items()}
    ours = answers["ours"]
    return {
        "questions": len(right),
        "accuracy": round(sum(a == b for a, b in zip(ours, right, strict=True)) / len(right), 4),
        "questions_per_cpu_second": {engine: round(len(right) / each, 3) for engine, each in seconds.items()},
        "vs_lm_eval": _ratio(seconds, "lm_eval"),
        "vs_llamafactory_loop": _ratio(seconds, "llamafactory_loop"),
        "same_answers": all(each == ours for each in answers.values()),
        "differing_answers": {
            engine: sum(a != b for a, b in zip(each, ours, strict=True)) for engine, each in answers.items()
        },
    }


def _ratio(seconds: dict[str, float], engine: str) -> float | None:
    return round(seconds[engine] / seconds["ours"], 2) if engine in seconds else None


def show(found: dict[str, Any]) -> str:
    """Return the figures for reading."""
    lines = [f"{found['questions']} questions of {', '.join(found['subjects'])}; accuracy {found['accuracy']:.3f}"]
    lines += [f"{name:20}{each:8.3f} questions a CPU s" for name, each in found["questions_per_cpu_second"].items()]
    names = ("vs_lm_eval", "vs_llamafactory_loop", "same_answers")
    return "\n".join([*lines, *(f"{name:20}{found[name]}" for name in names)])


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory; else SmolLM2-135M-Instruct of the catalogue")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), help="benchmark:subject")
    parser.add_argument("--questions", type=int, default=100, help="of each subject, the first")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--lm-eval-batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    if "ours" not in told.engines:
        parser.error("--engines must hold ours, which the others are compared with.")
    found = measure(told)
    print(json.dumps(found, indent=1) if told.json else show(found))


if __name__ == "__main__":
    main()
