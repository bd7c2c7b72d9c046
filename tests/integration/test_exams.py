"""CMMLU and C-Eval in the gate; prompts and accuracies are recomputed from CSV files and lm_eval's templates."""

import csv
import zipfile
from pathlib import Path
from statistics import fmean

import jinja2
import pytest
import yaml

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

import lm_eval

from tests import tiny
from tests.integration import reference
from tests.integration.test_inputs import promoted

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

SHOTS, QUESTIONS = 2, 10
"""Maximum per CSV file."""

SUBJECTS = {"cmmlu": {"agronomy": 12, "anatomy": 6}, "ceval": {"accountant": 6, "advanced_mathematics": 12}}
"""Number of questions per subject. The answers alternate between A and B; the base model always predicts C."""

CATEGORIES = {"agronomy": "other", "anatomy": "stem", "accountant": "other", "advanced_mathematics": "stem"}
HEADERS = {
    "cmmlu": ["", "Question", "A", "B", "C", "D", "Answer"],
    "ceval": ["id", "question", "A", "B", "C", "D", "answer", "explanation"],
}
TASKS = {"cmmlu": ("_default_template_yaml", "cmmlu_{}"), "ceval": ("_default_ceval_yaml", "ceval-valid_{}")}


def csv_row(benchmark, split, number):
    """Return one row of a CSV file in the published layout."""
    row = [number, f"{split} {number} 选哪个", f"{number} 一", "二", "三", "四", "AB"[number % 2]]
    return [*row, "因为"] if benchmark == "ceval" else row


def write_exam(folder, benchmark):
    """Write an exam as it is published: CMMLU in a zip file, C-Eval in a folder with its questions in `val`."""
    split, suffix = ("val", "_{}") if benchmark == "ceval" else ("test", "")
    for subject, num_questions in SUBJECTS[benchmark].items():
        for part, count in (("dev", SHOTS + 1), (split, num_questions)):
            path = folder / part / f"{subject}{suffix.format(part)}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(HEADERS[benchmark])
                writer.writerows(csv_row(benchmark, part, i) for i in range(count))
    if benchmark == "ceval":
        return folder
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in folder.rglob("*.csv"):
            archive.write(path, path.relative_to(folder).as_posix())
    return folder.with_suffix(".zip")


def task_of(benchmark, subject):
    """Return lm-evaluation-harness's description of a subject and its question template."""
    shared, name = TASKS[benchmark]
    folder = Path(lm_eval.__file__).parent / "tasks" / benchmark
    config = yaml.safe_load((folder / f"{name.format(subject)}.yaml").read_text(encoding="utf-8"))
    template = yaml.safe_load((folder / shared).read_text(encoding="utf-8"))["doc_to_text"]
    return config["description"], jinja2.Template(template)


def rows_of(folder, subject, part):
    """Read a CSV file."""
    (path,) = [path for path in (folder / part).glob("*.csv") if path.stem.removesuffix(f"_{part}") == subject]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected_questions(benchmark, folder):
    """Return subject, prompt and answer of each question as lm-evaluation-harness builds them."""
    key = "answer" if benchmark == "ceval" else "Answer"
    questions = []
    for subject in SUBJECTS[benchmark]:
        head, template = task_of(benchmark, subject)
        shots = [f"{template.render(row)} {row[key]}\n\n" for row in rows_of(folder, subject, "dev")[:SHOTS]]
        for row in rows_of(folder, subject, "val" if benchmark == "ceval" else "test")[:QUESTIONS]:
            questions.append((subject, head + "".join(shots) + template.render(row), row[key]))
    return questions


def texts():
    """Return the ends of questions with the answer A or B; none is part of the exams."""
    for i in range(80):
        *_, last, letter = csv_row("cmmlu", "", i)
        yield {"text": f"{i}\nD. {last}\n答案： {letter}"}


@pytest.fixture(scope="module")
def outcome(project, run):
    """A run whose model learned the letters and is promoted by both exams."""
    tiny.write_jsonl(project / "data" / "answers.jsonl", list(texts()))
    exams = [
        {
            "name": name,
            "benchmark": name,
            "path": write_exam(project / name, name).name,
            "num_shots": SHOTS,
            "max_questions": QUESTIONS,
        }
        for name in SUBJECTS
    ]
    return run(
        "pretrain_pipeline",
        stage="pretrain",
        sources=[{"name": "answers", "path": "data/answers.jsonl", "format": "text"}],
        exams=exams,
        method={"type": "full"},
        tokenize={"max_length": 512},
        train={"learning_rate": 1e-2, "max_steps": 40, "lr_scheduler_type": "constant"},
        registry={
            "model_name": "examinee",
            "gate": {"targets": [{"metric": f"{name}_accuracy"} for name in SUBJECTS]},
        },
    )


@pytest.mark.parametrize("benchmark", SUBJECTS)
@pytest.mark.parametrize("side", ["base", "model"])
def test_accuracies_equal_those_of_transformers_on_the_harness_prompts(benchmark, side, project, outcome):
    folder = promoted(outcome, "examinee")
    model, tokenizer = reference.load(folder if side == "model" else project / "model")
    run = reference.champion_run("examinee")
    stored = {row["prompt"]: row for row in reference.stored_scores(run.info.run_id, benchmark, side)}
    questions = expected_questions(benchmark, project / benchmark)

    right = {subject: [] for subject in SUBJECTS[benchmark]}
    for subject, prompt, answer in questions:
        letter = reference.predict_letter(model, tokenizer, prompt)
        right[subject].append(letter == answer)
        assert (stored[prompt]["output"], stored[prompt]["reference"]) == (letter, answer)
        assert stored[prompt]["metrics"] == {"accuracy": float(letter == answer)}
    assert len(stored) == len(questions) == 10 + 6

    suffix = ".base" if side == "base" else ""
    means = {subject: fmean(correct) for subject, correct in right.items()}
    accuracies = {f"{CATEGORIES[subject]}_accuracy": mean for subject, mean in means.items()}
    all_correct = [value for correct in right.values() for value in correct]
    accuracies |= {"accuracy": fmean(all_correct), "macro_accuracy": fmean(means.values())}
    for name, value in accuracies.items():
        assert run.data.metrics[f"{benchmark}_{name}{suffix}"] == pytest.approx(value)


def test_the_gate_applies_mcnemars_exact_test_to_both_exams(project, outcome):
    folder = promoted(outcome, "examinee")
    base, model = reference.load(project / "model"), reference.load(folder)
    findings = {finding.metric: finding for finding in outcome.decision.findings}

    assert set(findings) == {"cmmlu_accuracy", "ceval_accuracy"}
    for benchmark in SUBJECTS:
        questions = expected_questions(benchmark, project / benchmark)
        before, after = (
            [reference.predict_letter(*loaded, prompt) == key for _, prompt, key in questions]
            for loaded in (base, model)
        )
        finding = findings[f"{benchmark}_accuracy"]
        assert (finding.opponent, finding.candidate) == (pytest.approx(fmean(before)), pytest.approx(fmean(after)))
        assert finding.p == pytest.approx(reference.mcnemar(before, after))
