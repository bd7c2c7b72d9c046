"""Exam questions per CPU-second: our evaluator compared with lm-evaluation-harness and the loop of LlamaFactory.

    TUNELINE_TEST_DATA=... python -m benchmarks.exam_throughput [--json] [--questions 100]

All engines answer the same questions of real exams with the same 5-shot prompts and the same model
(SmolLM2-135M-Instruct in float32) on one thread. Each engine runs in a separate process; imports and model loading are
not timed. CPU-seconds are user and system time. `same_answers` is true if all engines chose the same letter for every
question.
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
    """Return the first questions of each subject (`benchmark:subject`) in the format of the engines."""
    subjects_data = []
    for name in subjects:
        benchmark, _, subject = name.partition(":")
        config = ExamConfig(name=benchmark, benchmark=benchmark, path=folder / f"{benchmark}.zip", subjects=[subject])
        exam = multiple_choice.read_exam(exam_files.locate_exams([config]).only())
        shots, selected = exam.shots[subject][:NUM_SHOTS], exam.test[subject][:count]
        subjects_data.append(
            {
                "prompts": [letter_logprobs.prompt(question, shots, benchmark) for question in selected],
                "head": letter_logprobs.HEADERS[benchmark].format(subject=subject_title(benchmark, subject)),
                "answer": letter_logprobs.ANSWER_PREFIXES[benchmark],
                "dev": [[shot.text, *shot.choices, shot.answer] for shot in shots],
                "test": [[question.text, *question.choices, question.answer] for question in selected],
            }
        )
    return subjects_data


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all engines, in turns."""
    data = Path(os.environ.get("TUNELINE_TEST_DATA", "")) / "exams"
    if not data.is_dir():
        raise SystemExit(f"{data} is missing. Set TUNELINE_TEST_DATA to the folder that holds exams/.")
    runs: dict[str, list[process.Result]] = {engine: [] for engine in args.engines}
    with tempfile.TemporaryDirectory(prefix="tuneline-benchmark-") as folder:
        subjects = questions(args.subjects, args.questions, data)
        path = Path(folder) / "questions.json"
        path.write_text(json.dumps(subjects, ensure_ascii=False), encoding="utf-8")
        model = str(data_preparation.model_folder(args.model))
        for turn in range(args.repeats):
            for engine in args.engines:
                print(f"{turn + 1} of {args.repeats}: {engine}", file=sys.stderr)
                size = args.lm_eval_batch if engine == "lm_eval" else LLAMAFACTORY_BATCH
                arguments = {"engine": engine, "model": model, "questions": str(path), "batch_size": size}
                runs[engine].append(process.run("exam_engines", arguments))
    answers = [row[-1] for subject in subjects for row in subject["test"]]
    return {"subjects": args.subjects, **report(runs, answers)}


def report(runs_by_engine: dict[str, list[process.Result]], correct: list[str]) -> dict[str, Any]:
    """Return questions per CPU-second, ratios, and whether all engines chose the same letters."""
    seconds = {engine: median(run["cpu_seconds"] for run in runs) for engine, runs in runs_by_engine.items()}
    answers = {engine: runs[0]["answers"] for engine, runs in runs_by_engine.items()}
    ours = answers["ours"]
    return {
        "questions": len(correct),
        "accuracy": round(sum(a == b for a, b in zip(ours, correct, strict=True)) / len(correct), 4),
        "questions_per_cpu_second": {engine: round(len(correct) / value, 3) for engine, value in seconds.items()},
        "vs_lm_eval": _ratio(seconds, "lm_eval"),
        "vs_llamafactory_loop": _ratio(seconds, "llamafactory_loop"),
        "same_answers": all(letters == ours for letters in answers.values()),
        "differing_answers": {
            engine: sum(a != b for a, b in zip(letters, ours, strict=True)) for engine, letters in answers.items()
        },
    }


def _ratio(seconds: dict[str, float], engine: str) -> float | None:
    return round(seconds[engine] / seconds["ours"], 2) if engine in seconds else None


def format_results(results: dict[str, Any]) -> str:
    """Return the results as a text table."""
    lines = [
        f"{results['questions']} questions of {', '.join(results['subjects'])}; accuracy {results['accuracy']:.3f}"
    ]
    lines += [f"{name:20}{rate:8.3f} questions per CPU s" for name, rate in results["questions_per_cpu_second"].items()]
    names = ("vs_lm_eval", "vs_llamafactory_loop", "same_answers")
    return "\n".join([*lines, *(f"{name:20}{results[name]}" for name in names)])


def main() -> None:
    """Run the benchmark and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory (default: SmolLM2-135M-Instruct of the catalogue)")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), help="benchmark:subject")
    parser.add_argument("--questions", type=int, default=100, help="number of questions per subject")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--lm-eval-batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if "ours" not in args.engines:
        parser.error("--engines must contain ours: the other engines are compared with it.")
    results = measure(args)
    print(json.dumps(results, indent=1) if args.json else format_results(results))


if __name__ == "__main__":
    main()
