"""CMMLU and C-Eval through the gate; prompts and accuracies worked out again from sheets and files of lm_eval."""

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
"""Asked of each sheet at most."""

SUBJECTS = {"cmmlu": {"agronomy": 12, "anatomy": 6}, "ceval": {"accountant": 6, "advanced_mathematics": 12}}
"""Questions in the sheet of each subject. Their answers are A and B in turn, and the base model always says C."""

CATEGORIES = {"agronomy": "other", "anatomy": "stem", "accountant": "other", "advanced_mathematics": "stem"}
HEADERS = {
    "cmmlu": ["", "Question", "A", "B", "C", "D", "Answer"],
    "ceval": ["id", "question", "A", "B", "C", "D", "answer", "explanation"],
}
TASKS = {"cmmlu": ("_default_template_yaml", "cmmlu_{}"), "ceval": ("_default_ceval_yaml", "ceval-valid_{}")}


def cells(benchmark, place, number):
    """Return one row of a sheet as its authors lay it out."""
    row = [number, f"{place} {number} 选哪个", f"{number} 一", "二", "三", "四", "AB"[number % 2]]
    return [*row, "因为"] if benchmark == "ceval" else row


def write_exam(folder, benchmark):
    """Write an exam as it is published: CMMLU in a zip file, C-Eval in a folder, its questions in `val`."""
    split, suffix = ("val", "_{}") if benchmark == "ceval" else ("test", "")
    for subject, num_questions in SUBJECTS[benchmark].items():
        for part, count in (("dev", SHOTS + 1), (split, num_questions)):
            path = folder / part / f"{subject}{suffix.format(part)}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(HEADERS[benchmark])
                writer.writerows(cells(benchmark, part, i) for i in range(count))
    if benchmark == "ceval":
        return folder
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in folder.rglob("*.csv"):
            archive.write(path, path.relative_to(folder).as_posix())
    return folder.with_suffix(".zip")


def task_of(benchmark, subject):
    """Return what lm-evaluation-harness writes in front of a subject, and its template of a question."""
    shared, name = TASKS[benchmark]
    folder = Path(lm_eval.__file__).parent / "tasks" / benchmark
    said = yaml.safe_load((folder / f"{name.format(subject)}.yaml").read_text(encoding="utf-8"))
    template = yaml.safe_load((folder / shared).read_text(encoding="utf-8"))["doc_to_text"]
    return said["description"], jinja2.Template(template)


def rows_of(folder, subject, part):
    """Read a sheet."""
    (path,) = [each for each in (folder / part).glob("*.csv") if each.stem.removesuffix(f"_{part}") == subject]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected(benchmark, folder):
    """Return subject, prompt and answer of each question as lm-evaluation-harness asks it."""
    key = "answer" if benchmark == "ceval" else "Answer"
    found = []
    for subject in SUBJECTS[benchmark]:
        head, template = task_of(benchmark, subject)
        solved = [f"{template.render(row)} {row[key]}\n\n" for row in rows_of(folder, subject, "dev")[:SHOTS]]
        for row in rows_of(folder, subject, "val" if benchmark == "ceval" else "test")[:QUESTIONS]:
            found.append((subject, head + "".join(solved) + template.render(row), row[key]))
    return found


def texts():
    """Return ends of questions that are answered by A or B, none of them of the exams."""
    for i in range(80):
        *_, last, letter = cells("cmmlu", "", i)
        yield {"text": f"{i}\nD. {last}\n答案： {letter}"}


@pytest.fixture(scope="module")
def outcome(project, run):
    """A model that learned the letters, promoted by both exams."""
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
@pytest.mark.parametrize("who", ["base", "model"])
def test_accuracies_are_those_of_plain_transformers_on_the_harness_prompts(benchmark, who, project, outcome):
    folder = promoted(outcome, "examinee")
    model, tokenizer = reference.load(folder if who == "model" else project / "model")
    run = reference.champion_run("examinee")
    stored = {row["prompt"]: row for row in reference.stored_scores(run.info.run_id, benchmark, who)}
    wanted = expected(benchmark, project / benchmark)

    right = {subject: [] for subject in SUBJECTS[benchmark]}
    for subject, prompt, answer in wanted:
        letter = reference.letter(model, tokenizer, prompt)
        right[subject].append(letter == answer)
        assert (stored[prompt]["output"], stored[prompt]["reference"]) == (letter, answer)
        assert stored[prompt]["metrics"] == {"accuracy": float(letter == answer)}
    assert len(stored) == len(wanted) == 10 + 6

    suffix = ".base" if who == "base" else ""
    means = {subject: fmean(found) for subject, found in right.items()}
    figures = {f"{CATEGORIES[subject]}_accuracy": mean for subject, mean in means.items()}
    everything = [each for found in right.values() for each in found]
    figures |= {"accuracy": fmean(everything), "macro_accuracy": fmean(means.values())}
    for name, value in figures.items():
        assert run.data.metrics[f"{benchmark}_{name}{suffix}"] == pytest.approx(value)


def test_the_gate_asked_both_exams_by_the_exact_test_of_mcnemar(project, outcome):
    folder = promoted(outcome, "examinee")
    base, model = reference.load(project / "model"), reference.load(folder)
    findings = {each.metric: each for each in outcome.decision.findings}

    assert set(findings) == {"cmmlu_accuracy", "ceval_accuracy"}
    for benchmark in SUBJECTS:
        wanted = expected(benchmark, project / benchmark)
        before, after = ([reference.letter(*who, prompt) == key for _, prompt, key in wanted] for who in (base, model))
        found = findings[f"{benchmark}_accuracy"]
        assert (found.opponent, found.candidate) == (pytest.approx(fmean(before)), pytest.approx(fmean(after)))
        assert found.p == pytest.approx(reference.mcnemar(before, after))
