"""Tuneline, lm-evaluation-harness and LlamaFactory choose the same letters on real subjects."""

import json
from pathlib import Path

import pytest

from benchmarks import exam_throughput
from benchmarks.peers import process

pytestmark = pytest.mark.slow
SUBJECTS = ["mmlu:conceptual_physics", "cmmlu:traditional_chinese_medicine", "ceval:middle_school_politics"]


def test_three_engines_choose_the_same_letters(test_data, home, tmp_path):
    from tuneline.config.sections.model import CatalogueModel
    from tuneline.model import source

    tokenizer, _, _ = source.resolve_model(CatalogueModel(type="catalogue", name="smollm2-135m-instruct"))
    questions = exam_throughput.questions(SUBJECTS, 4, test_data / "exams")
    path = Path(tmp_path / "questions.json")
    path.write_text(json.dumps(questions), encoding="utf-8")
    arguments = {"model": tokenizer.only().location, "questions": str(path), "batch_size": 2}

    results = {name: process.run("exam_engines", {**arguments, "engine": name}) for name in exam_throughput.ENGINES}

    assert len(results["ours"]["answers"]) == 12
    assert results["ours"]["answers"] == results["lm_eval"]["answers"] == results["llamafactory_loop"]["answers"]
